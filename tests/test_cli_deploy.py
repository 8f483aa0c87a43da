"""`lowbit export`, `verify`, `predict` and `bench`."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.cli import main
from lowbit.cli.deploy_options import BenchCommand, PredictCommand
from lowbit.deploy import Origin, rebuild, save
from lowbit.deploy.files.origin import read_origin
from lowbit.deploy.kernels.loader import kernels
from lowbit.layers import quant_layers

Run = Callable[..., tuple[int, str, str]]
SMALL = ["--model", "mlp(hidden=(16, 16))", "--batch-size", "128", "--threads", "1", "--device", "cpu"]
NETS = """
from torch import nn


def mine(num_classes, in_channels, width=4):
    return nn.Sequential(
        nn.Flatten(), nn.LazyLinear(width), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes),
    )
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of a second: `run`, `longer`, of other weights, and `plain`, in float."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in {
        "run": ["--epochs", "1"],
        "longer": ["--epochs", "2", "--seed", "1"],
        "plain": ["--epochs", "1", "--weights", "32", "--activations", "32"],
    }.items():
        assert main(["train", *SMALL, *options, "--out", str(folder / name)]) == 0
    assert main(["export", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def lowbit(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in a folder with copies of the runs: arguments → exit status, standard output, standard error."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(list(arguments))
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def needs_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime", "qonnx", "torch.onnx.ops"):
        pytest.importorskip(name)


def test_a_file_is_written_proved_and_used_without_its_run(lowbit: Run) -> None:
    status, out, err = lowbit("export", "run", "--to", "a.lowbit", "--images", "50")
    assert (status, err) == (0, "")
    for part in ("written: a.lowbit (packed,", "fc2", "identical", "50 test images of 'digits'", "still float: fc1"):
        assert part in out
    accuracy = json.loads(lowbit("eval", "run", "--json")[1])["test_accuracy"]
    shutil.rmtree("run")
    status, out, err = lowbit("predict", "a.lowbit", "--json")
    assert status == 0
    (line,) = out.splitlines()
    result = json.loads(line)
    assert list(result) == [
        "artefact", "runtime", "data", "accuracy", "images", "seconds", "images_per_second", "batch_size", "threads",
    ]  # fmt: skip
    assert (result["accuracy"], result["data"], result["batch_size"]) == (accuracy, "digits", 256)
    assert result["runtime"] == ("lowbit's kernels" if kernels() else "PyTorch")
    assert f"test accuracy {100 * accuracy:.2f} % on {result['images']} images of 'digits'" in err
    status, out, err = lowbit("predict", "a.lowbit", "--data", "digits", "--limit", "7", "--batch-size", "4")
    assert (status, "on 7 images" in out) == (0, True)


@pytest.mark.parametrize(
    ("name", "options", "runtime"),
    [
        ("a.onnx", [], "ONNX Runtime"),
        ("a.onnx", ["--form", "int4", "--opset", "25"], "ONNX Runtime"),
        ("a.qonnx", [], "qonnx"),
    ],
)
def test_onnx_files_too(lowbit: Run, name: str, options: list[str], runtime: str) -> None:
    needs_onnx()
    status, out, err = lowbit("export", "run", "--to", name, *options, "--json")
    assert (status, "identical" in err) == (0, True)
    (line,) = out.splitlines()
    result = json.loads(line)
    assert list(result) == ["path", "to", "form", "opset", "bytes", "layers", "report"]
    assert (result["path"], result["bytes"], result["layers"].keys()) == (name, Path(name).stat().st_size, {"fc2"})
    assert result["report"]["identical"]
    assert lowbit("verify", name, "run", "--images", "9")[0] == 0
    result = json.loads(lowbit("predict", name, "--limit", "30", "--json")[1])
    packed = json.loads(lowbit("predict", "run/model.lowbit", "--limit", "30", "--json")[1])
    assert (result["accuracy"], result["runtime"]) == (packed["accuracy"], runtime)
    assert read_origin(Path(name)) == read_origin(Path("run/model.lowbit"))


def test_a_file_says_where_it_comes_from(lowbit: Run) -> None:
    origin = read_origin(Path("run/model.lowbit"))
    checkpoint = torch.load("run/best.ckpt", weights_only=True)
    assert origin == Origin(
        model="mlp(hidden=(16, 16))",
        classes=tuple("0123456789"),
        in_channels=1,
        image_size=(8, 8),
        mean=tuple(checkpoint["normalization"]["mean"]),
        std=tuple(checkpoint["normalization"]["std"]),
        data="digits",
        checkpoint="best",
        epoch=1,
    )


def test_nothing_is_replaced_unasked(lowbit: Run) -> None:
    before = Path("run/model.lowbit").read_bytes()
    status, out, err = lowbit("export", "run")
    assert (status, out) == (2, "")
    assert "'run/model.lowbit' exists: replace it with --overwrite" in err
    assert lowbit("export", "longer", "--to", "run/model.lowbit", "--overwrite")[0] == 0
    assert Path("run/model.lowbit").read_bytes() != before


def test_a_file_that_computes_something_else_is_not_kept(lowbit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module, path: Path, origin: Origin) -> int:
        twin = rebuild("run/model.lowbit")
        for _, layer in quant_layers(twin):
            layer.weight_quantizer.quantizer.stored[0, 0] *= -1
        return save(twin, path, origin)

    monkeypatch.setattr(importlib.import_module("lowbit.deploy.export"), "save", wrong)
    status, out, err = lowbit("export", "run", "--to", "a.lowbit", "--json")
    assert (status, out) == (2, "")
    assert "error: 'a.lowbit' was not written" in err
    assert "first difference: output of 'fc2'" in err
    assert not [path for path in Path().iterdir() if "lowbit" in path.name]


def test_verify_tells_other_weights_apart(lowbit: Run) -> None:
    status, out, err = lowbit("verify", "run/model.lowbit", "longer", "--checkpoint", "last", "--json")
    assert status == 1
    (line,) = out.splitlines()
    assert not json.loads(line)["identical"]
    assert "DIFFERENT" in err
    assert "the file was made after epoch 1, the last checkpoint of 'longer' is that of epoch 2" in err
    status, out, err = lowbit("verify", "run/model.lowbit", "run", "--seed", "3")
    assert (status, err, "made to hurt (seed 3)" in out) == (0, "", True)


def test_verify_takes_the_checkpoint_that_the_file_was_made_from(lowbit: Run) -> None:
    shutil.copy("run/best.ckpt", "longer/best.ckpt")
    assert lowbit("export", "longer", "--checkpoint", "last", "--to", "a.lowbit")[0] == 0
    assert lowbit("verify", "a.lowbit", "longer")[0] == 0
    assert lowbit("verify", "a.lowbit", "longer", "--checkpoint", "best")[0] == 1


def test_rounding_of_float_layers_is_told_apart(lowbit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("lowbit.deploy.proof.verify")
    monkeypatch.setattr(module, "_explanation", lambda *_: (True, "the order of a sum explains it"))
    loaded: list[nn.Module] = []
    load, observe = module.load, module.observe

    def kept(model: nn.Module, path: Path) -> nn.Module:
        loaded.append(load(model, path))
        return loaded[-1]

    def shifted(model: nn.Module, inputs: Any) -> Any:
        trace = observe(model, inputs)
        if model in loaded:
            trace.entries[0].value.view(-1)[0] += 1
        return trace

    monkeypatch.setattr(module, "load", kept)
    monkeypatch.setattr(module, "observe", shifted)
    status, out, err = lowbit("verify", "run/model.lowbit", "run")
    assert (status, "the order of a sum explains it" in out) == (1, True)
    assert "rounding in float layers explains every difference of codes: the file is right" in err
    status, out, err = lowbit("export", "run", "--to", "a.lowbit")
    assert (status, Path("a.lowbit").exists()) == (0, True)
    assert "codes differ by rounding alone" in err


def test_a_function_of_the_users_own_is_run_only_when_trusted(lowbit: Run) -> None:
    Path("own_nets.py").write_text(NETS)
    model = "own_nets:mine(width=6)"
    assert lowbit("train", *SMALL, "--model", model, "--epochs", "1", "--out", "own")[0] == 0
    assert lowbit("export", "own", "--to", "a.lowbit")[0] == 0
    for command in ("predict", "bench"):
        status, out, err = lowbit(command, "a.lowbit")
        assert (status, out) == (2, "")
        assert f"lowbit runs no code because a file says so: if you trust it, say so with --model '{model}'" in err
    assert lowbit("predict", "a.lowbit", "--model", model)[0] == 0
    status, out, err = lowbit("predict", "a.lowbit", "--model", "own_nets:mine")
    assert (status, "does not fit: '4.weight' has shape (8, 6)" in err) == (2, True)


def test_a_data_source_of_the_users_own_likewise(lowbit: Run) -> None:
    Path("sources.py").write_text(
        "from lowbit.data import load_data\n\n\ndef mine():\n    return load_data('digits')\n"
    )
    assert lowbit("train", *SMALL, "--data", "sources:mine", "--epochs", "1", "--out", "own")[0] == 0
    assert lowbit("export", "own", "--to", "a.lowbit")[0] == 0
    status, _, err = lowbit("predict", "a.lowbit")
    assert (status, "if you trust it, say so with --data 'sources:mine'" in err) == (2, True)
    assert lowbit("predict", "a.lowbit", "--data", "sources:mine")[0] == 0


KEYS = [
    "artefact", "model", "runtime", "batch", "threads", "rounds", "lowbit_ms", "ort_int8_ms", "ort_float_ms",
    "torch_float_ms", "speedups", "notices", "machine",
]  # fmt: skip


@pytest.mark.parametrize("name", ["a.onnx", "run/model.lowbit"])
def test_bench_times_everybody(lowbit: Run, name: str) -> None:
    needs_onnx()
    if name == "a.onnx":
        assert lowbit("export", "run", "--to", name)[0] == 0
    status, out, err = lowbit("bench", name, "--rounds", "2", "--batch", "3", "--json")
    assert status == 0
    (line,) = out.splitlines()
    result = json.loads(line)
    assert list(result) == KEYS
    assert all(result[key] > 0 for key in KEYS if key.endswith("_ms"))
    assert result["speedups"].keys() == {"ort_int8", "ort_float", "torch_float"}
    assert all(value > 0 for value in result["speedups"].values())
    assert (result["model"], result["batch"], result["threads"], result["rounds"]) == ("mlp(hidden=(16, 16))", 3, 1, 2)
    assert result["machine"]["processor"]
    assert result["notices"] == []
    assert "float net, int8, ONNX Runtime" in err


def test_bench_does_without_onnx_runtime(lowbit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("lowbit.deploy.measure.bench")
    monkeypatch.setattr(module, "_installed", lambda name: name != "onnxruntime")
    status, out, err = lowbit("bench", "run/model.lowbit", "--rounds", "1", "--json")
    result = json.loads(out)
    assert (status, result["ort_int8_ms"], result["ort_float_ms"], result["speedups"]["ort_int8"]) == (0, *[None] * 3)
    assert result["torch_float_ms"] > 0
    assert "note: not installed: onnxruntime" in err
    assert result["machine"]["onnxruntime"] is None


def test_bench_does_without_a_peer_that_does_not_take_the_net(lowbit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_onnx()
    module = importlib.import_module("lowbit.deploy.measure.bench")

    def refuse(*_: Any) -> None:
        raise RuntimeError("unsupported operator\nand a long explanation")

    monkeypatch.setattr(module, "write_int8", refuse)
    status, _, err = lowbit("bench", "run/model.lowbit", "--rounds", "1")
    assert status == 0
    assert "note: float net, int8, ONNX Runtime: not to be had for this net (unsupported operator)" in err


def test_wrong_kernels_are_not_timed(lowbit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("lowbit.deploy.kernels.compiled")
    right = module.CompiledModule.forward
    monkeypatch.setattr(module.CompiledModule, "forward", lambda self, x: right(self, x) + 1)
    status, out, err = lowbit("bench", "run/model.lowbit", "--rounds", "1")
    assert (status, out) == (2, "")
    assert "the compiled kernels do not compute what PyTorch computes" in err


def test_threads_are_put_back(lowbit: Run) -> None:
    before = torch.get_num_threads()
    assert lowbit("predict", "run/model.lowbit", "--threads", str(before + 1), "--limit", "2")[0] == 0
    assert torch.get_num_threads() == before


def test_without_kernels_pytorch_predicts(lowbit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("lowbit.deploy.kernels.compiled")
    with_them = json.loads(lowbit("predict", "run/model.lowbit", "--json")[1])
    monkeypatch.setattr(module, "kernels", lambda: None)
    result = json.loads(lowbit("predict", "run/model.lowbit", "--json")[1])
    assert (result["runtime"], result["accuracy"]) == ("PyTorch", with_them["accuracy"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "plain"], ["run 'plain' was trained in float", "--init plain --weights 1 --activations 2"]),
        (["verify", "run/model.lowbit", "plain"], ["run 'plain' was trained in float"]),
        (["export", "run", "--to", "a.tflite"], ["--to 'a.tflite' ends in '.tflite', expected .lowbit, .onnx or"]),
        (["export", "run", "--to", "no/a.onnx"], ["there is no folder 'no'; create it first"]),
        (["export", "run", "--to", "dir.onnx"], ["--to 'dir.onnx' is a folder"]),
        (["export", "run", "--to", "a.lowbit", "--form", "int8"], ["--form int8 is for .onnx files", "leave it out"]),
        (["export", "run", "--to", "a.onnx", "--form", "int16"], ["--form: 'int16' is not one of int8, int4, float"]),
        (["export", "run", "--to", "a.onnx", "--opset", "20"], ["--opset is 20, expected 21 or 25"]),
        (["export", "run", "--to", "a.lowbit", "--opset", "25"], ["--opset 25 is for .onnx and .qonnx files"]),
        (["export", "run", "--to", "a.lowbit", "--images", "0"], ["--images is 0, expected a whole number from 1"]),
        (["export", "gone"], ["there is no folder 'gone'"]),
        (["export", "."], ["holds no checkpoint"]),
        (["verify", "run", "run/model.lowbit"], ["the file comes first, then the run: lowbit verify run/model.lowbit"]),
        (["verify", "gone.lowbit", "run"], ["there is no file 'gone.lowbit'"]),
        (["predict", "run"], ["'run' is a folder: give a file that 'lowbit export' wrote"]),
        (["predict", "file"], ["'file' is no exported file: those end in .lowbit, .onnx or .qonnx"]),
        (["predict", "run/model.lowbit", "--data", "digist"], ["unknown data source", "did you mean 'digits'?"]),
        (
            ["predict", "run/model.lowbit", "--data", "two_sources:two"],
            ["tells 10 classes (0, 1, 2, 3, 4, …) apart", "2"],
        ),
        (
            ["predict", "run/model.lowbit", "--data", "two_sources:wide"],
            ["takes images of (1, 8, 8)", "have (1, 8, 9)"],
        ),
        (["predict", "run/model.lowbit", "--limit", "0"], ["--limit is 0, expected a whole number from 1"]),
        (["predict", "run/model.lowbit", "--batch-size", "x"], ["--batch-size is 'x', expected a whole number"]),
        (["predict", "cut.lowbit"], ["'cut.lowbit' is cut off: its header announces"]),
        (["predict", "flipped.lowbit"], ["'flipped.lowbit' was changed after it was written, or is damaged"]),
        (["bench", "flipped.lowbit"], ["'flipped.lowbit' was changed after it was written, or is damaged"]),
        (["predict", "anonymous.lowbit"], ["'anonymous.lowbit' does not say what its model was made of", "origin="]),
        (["bench", "run/model.lowbit", "--threads", "0"], ["--threads is 0, expected a whole number from 1"]),
        (["bench", "a.qonnx"], ["'a.qonnx' is for FPGA tools", "export the run to .lowbit or .onnx"]),
        (["bench"], ["lowbit export", "required"]),
    ],
)
def test_a_mistake_is_answered_in_plain_words(lowbit: Run, arguments: list[str], says: list[str]) -> None:
    good = Path("run/model.lowbit").read_bytes()
    Path("file").write_text("")
    Path("dir.onnx").mkdir()
    Path("cut.lowbit").write_bytes(good[:-9])
    Path("flipped.lowbit").write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
    save(rebuild("run/model.lowbit"), "anonymous.lowbit")
    Path("two_sources.py").write_text(
        "import torch\nfrom lowbit.data import ImageData, Split\n\n\n"
        "def two(width=8, classes='ab'):\n"
        "    split = Split(torch.zeros(2, 1, 8, width, dtype=torch.uint8), torch.tensor([0, 1]))\n"
        "    return ImageData('two', split, split, tuple(classes))\n\n\n"
        "def wide():\n    return two(width=9)\n"
    )
    status, out, err = lowbit(*arguments)
    assert (status, out) == (2, "")
    words = " ".join(err.replace("│", " ").split())
    for part in says:
        assert part in words
    assert "Traceback" not in err
    assert not Path("a.lowbit").exists()


@pytest.mark.parametrize("content", [b"", b"\x08\x07nonsense"])
def test_what_is_no_onnx_file_is_told(lowbit: Run, content: bytes) -> None:
    needs_onnx()
    Path("a.onnx").write_bytes(content)
    for command in ("predict", "bench"):
        status, out, err = lowbit(command, "a.onnx")
        assert (status, out) == (2, "")
        assert "'a.onnx'" in err
        assert "Traceback" not in err


def test_help_and_defaults(lowbit: Run) -> None:
    for command in ("export", "verify", "predict", "bench"):
        status, out, err = lowbit(command, "--help")
        assert (status, err, "--json" in out) == (0, "", True)
        assert f"  {command} " in lowbit("--help")[1]
    assert (BenchCommand(Path("a")).threads, BenchCommand(Path("a")).batch) == (1, 1)
    assert PredictCommand(Path("a")).batch_size == 256


def test_weights_alone_in_low_bits(lowbit: Run) -> None:
    assert lowbit("train", *SMALL, "--activations", "32", "--epochs", "1", "--out", "weights")[0] == 0
    status, out, err = lowbit("export", "weights", "--to", "a.lowbit")
    assert (status, "identical" in out) == (0, True)
    assert "note: no layer here computes with whole numbers" in err
    status, out, _ = lowbit("predict", "a.lowbit")
    assert (status, "images/s in PyTorch" in out) == (0, True)  # nothing in it is for the kernels


def test_a_rebuilt_model_computes_what_the_compiled_one_does(lowbit: Run) -> None:
    model, images = rebuild("run/model.lowbit"), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    compiled: Callable[[Tensor], Tensor] = importlib.import_module("lowbit").compile(model, threads=1)
    assert torch.equal(compiled(images), model(images))
