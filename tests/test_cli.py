from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lowbit import __version__
from lowbit.cli import FAMILIES, CoarseCommand, FlowCommand, main
from lowbit.cli.options import FeaturesCommand, RepelCommand
from lowbit.data import DATA
from lowbit.diagnostics.coarse import CoarseExperiment
from lowbit.diagnostics.flow import FlowExperiment
from lowbit.diagnostics.repulsion import Descent
from lowbit.estimators import ESTIMATORS
from lowbit.methods import METHODS
from lowbit.models import MODELS
from lowbit.quantizers import QUANTIZERS
from lowbit.training import TrainConfig
from lowbit.training.config import FIELDS, from_dict
from lowbit.training.look import features_of_run, repel_run
from lowbit.training.progress import ProgressDisplay

Run = Callable[..., tuple[int, str, str]]
SMALL = ["--model", "mlp(hidden=(32, 32))", "--epochs", "2", "--batch-size", "128", "--threads", "1", "--device", "cpu"]


@pytest.fixture
def lowbit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in an empty working directory: arguments → exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(list(arguments))
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_without_arguments_a_network_learns_digits_well(lowbit: Run) -> None:
    status, out, err = lowbit("train", "--threads", "1", "--json")
    assert status == 0
    result = json.loads(out)
    assert result["test_accuracy"] >= 0.95
    assert {name: result["config"][name] for name in ("model", "data", "weights", "activations")} == {
        "model": "lenet5",
        "data": "digits",
        "weights": 1,
        "activations": 2,
    }
    assert "epoch 20/20" in err


def test_json_is_one_object_on_the_last_line_of_standard_output(lowbit: Run, tmp_path: Path) -> None:
    status, out, err = lowbit("train", *SMALL, "--validation", "0", "--out", "here", "--json")
    assert status == 0
    (line,) = out.splitlines()
    result = json.loads(line)
    assert list(result) == [
        "run", "test_accuracy", "best_accuracy", "last10_mean", "loss", "epochs", "seconds", "images_per_second",
        "peak_memory_mib", "config",
    ]  # fmt: skip
    assert (result["run"], result["epochs"]) == ("here", 2)
    assert 0 < result["test_accuracy"] <= result["best_accuracy"] <= 1
    assert result["peak_memory_mib"] > 50
    assert from_dict(result["config"], "test").model == "mlp(hidden=(32, 32))"
    assert err.count("epoch 2/2") == 1
    assert "here" in err


def test_without_json_standard_output_stays_empty_and_eval_repeats_the_accuracy(lowbit: Run) -> None:
    status, out, err = lowbit("train", *SMALL, "--out", "here")
    assert (status, out) == (0, "")
    last = json.loads(Path("here/metrics.jsonl").read_text().splitlines()[-1])
    status, out, err = lowbit("eval", "here", "--checkpoint", "last", "--json")
    assert status == 0
    assert json.loads(out)["test_accuracy"] == last["test_accuracy"]
    assert f"test accuracy {100 * last['test_accuracy']:.2f} %" in err
    assert lowbit("eval", "here")[1] == ""


def test_numbers_and_choices_are_read_in_every_spelling(lowbit: Run) -> None:
    flags = [
        "--clip-norm",
        "None",
        "--weight_decay=1e-3",
        "--milestones",
        "0.5",
        ".75",
        "--optimizer=sgd",
        "--seed",
        "-0",
    ]
    status, out, err = lowbit("train", *SMALL, *flags, "--keep-float", "--epochs", "1", "--json")
    assert status == 0, err
    config = json.loads(out)["config"]
    assert (config["clip_norm"], config["weight_decay"], config["optimizer"]) == (None, 1e-3, "sgd")
    assert (config["milestones"], config["keep_float"]) == ([0.5, 0.75], [])
    assert "3 layers converted; kept in float: none" in err


def test_flags_win_over_the_file_and_the_file_over_the_defaults(lowbit: Run) -> None:
    Path("recipe.yaml").write_text("model: mlp(hidden=(8, 8))\nepochs: 1\nthreads: 1\nseed: 4\n")
    out = lowbit("train", "--config", "recipe.yaml", "--seed", "5", "--no-channels-last", "--json")[1]
    config = json.loads(out)["config"]
    assert (config["model"], config["epochs"], config["seed"]) == ("mlp(hidden=(8, 8))", 1, 5)
    assert (config["channels_last"], config["batch_size"]) == (False, TrainConfig().batch_size)


def test_resuming_takes_the_runs_configuration_and_refuses_another(lowbit: Run) -> None:
    assert lowbit("train", *SMALL, "--schedule", "constant", "--out", "here")[0] == 0
    status, out, err = lowbit("train", "--resume", "here", "--epochs", "3", "--json")
    assert (status, json.loads(out)["epochs"], json.loads(out)["run"]) == (0, 3, "here")
    status, out, err = lowbit("train", "--resume=here", "--lr", "0.5", "--no-augment")
    assert (status, out) == (2, "")
    assert "--augment False (the run: True), --lr 0.5 (the run: 0.003)" in err
    status, out, err = lowbit("train", "--resume", "here", "--config", "recipe.yaml")
    assert (status, "exclude each other" in err) == (2, True)
    status, out, err = lowbit("train", "--resume", "gone")
    assert (status, "the folder does not exist" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], ["unknown command 'trian'", "did you mean 'train'?"]),
        (["train", "--optimiser", "adam"], ["--optimiser", "Perhaps you meant", "--optimizer"]),
        (["train", "--batchsize", "4"], ["--batchsize", "Perhaps you meant", "--batch-size"]),
        (["train", "--epochs", "many"], ["error: --epochs is 'many', expected a whole number"]),
        (["train", "--lr", "abc"], ["error: --lr is 'abc', expected a number"]),
        (["train", "--milestones", "0.5", "x"], ["error: --milestones is 'x', expected a number"]),
        (
            ["train", "--optimizer=adan"],
            ["error: --optimizer: 'adan' is not one of sgd, adam, adamw: did you", "'adam'?"],
        ),
        (["train", "--optimizer", "rmsprop"], ["error: --optimizer: 'rmsprop' is not one of sgd, adam, adamw"]),
        (["train", "--schedule", "cosin"], ["error: --schedule: 'cosin'", "did you mean 'cosine'?"]),
        (["train", "--device", "gpu"], ["error: --device: 'gpu'", "did you mean 'cuda'?"]),
        (["eval", "gone", "--checkpoint", "lats"], ["error: --checkpoint: 'lats'", "did you mean 'last'?"]),
        (["train", "--lr"], ["Missing value", "--lr"]),
        (["train", "--lr", "-1"], ["error: --lr is -1.0, expected a number above 0"]),
        (["train", "--estimator", "cliped"], ["error: unknown estimator 'cliped'", "did you mean 'clipped'?"]),
        (["train", "--estimator", "ewgs(dleta=1)"], ["no option 'dleta'", "did you mean 'delta'?"]),
        (["train", "--quantizer", "sing"], ["unknown quantizer 'sing'", "did you mean 'sign'?"]),
        (["train", "--model", "lenet"], ["unknown model 'lenet'", "did you mean 'lenet5'?"]),
        (["train", "--method", "plane"], ["unknown method 'plane'", "did you mean 'plain'?"]),
        (["train", "--data", "minst"], ["unknown data source 'minst'", "did you mean 'mnist'?"]),
        (["train", "--data", "mnist", "--data-path", "gone"], ["gone' does not exist", "--data-path"]),
        (["train", "--overrides", "fc(weights=2)"], ["no layer", "'fc'"]),
        (["train", "--config", "gone.yaml"], ["'gone.yaml' does not exist"]),
        (["train", "--out", "."], ["run folder '.' exists and is not empty", "choose another --out"]),
        (["eval"], ["Run folder", "required"]),
        (["eval", "gone"], ["there is no folder 'gone'"]),
        (["eval", "."], ["holds no checkpoint"]),
        (["train", "--model", "mlp(hidden=(8,))"], ["no layer of 'mlp(hidden=(8,))' would be low-bit", "--keep-float"]),
        (["train", "--model", "mlp", "--batch-size", "1"], ["model 'mlp' fails", "take a larger --batch-size"]),
        (["list", "estimator"], ["error: lowbit list: 'estimator'", "did you mean 'estimators'?"]),
        (["flow", "--equation", "heat"], ["error: --equation: 'heat' is not one of deturck, ricci"]),
        (["flow", "--dim", "4"], ["error: dim is 4, expected 2 or 3"]),
        (["flow", "--perturbation", "3"], ["positive definite", "it may be at most 0."]),
        (["flow", "--grid", "many"], ["error: --grid is 'many', expected a whole number"]),
        (["flow", "--out", "."], ["folder '.' exists and is not empty", "choose another --out"]),
        (["coarse", "--theta", "0"], ["error: theta is 0.0, expected an angle above 0 and at most 90 degrees"]),
        (["coarse", "--seeds", "few"], ["error: --seeds is 'few', expected a whole number"]),
        (["coarse", "--radius", "2", "x"], ["error: --radius is 'x', expected a number"]),
        (["coarse", "--estimator", "rleu"], ["error: unknown estimator 'rleu'", "did you mean 'relu'?"]),
        (["coarse", "--estimator", "approxsign"], ["'approxsign' is defined for the sign quantizer only"]),
        (["coarse", "--classes", "3", "--units", "2"], ["units is 2 for 3 classes, expected at least 3"]),
        (["coarse", "--bits", "9"], ["quantizer 'staircase' takes 1 to 8 bits, 9 were asked for"]),
        (["coarse", "--out", "there"], ["--out 'there' is for the pictures; add --plot"]),
        (["coarse", "--plot", "--out", "."], ["folder '.' exists and is not empty", "choose another --out"]),
        (["features", "gone"], ["'gone/best.ckpt' does not exist", "there is no folder 'gone'"]),
        (["features", "gone", "--images", "some"], ["error: --images is 'some', expected a whole number"]),
        (["repel", "gone", "--lr", "0"], ["error: lr is 0.0, expected a number above 0"]),
        (["repel", "gone", "--checkpoint", "lats"], ["error: --checkpoint: 'lats'", "did you mean 'last'?"]),
        (["plot"], ["Run folder", "required"]),
        (["plot", "gone"], ["'gone'"]),
        (["summary", "--input", "3", "32"], ["--input"]),
        (["summary", "--input", "3", "a", "32"], ["error: --input is 'a', expected a whole number"]),
    ],
)
def test_a_mistake_is_answered_in_plain_words(lowbit: Run, arguments: list[str], says: list[str]) -> None:
    Path("file").write_text("")
    status, out, err = lowbit(*arguments)
    assert (status, out) == (2, "")
    words = " ".join(err.replace("│", " ").split())
    for part in says:
        assert part in words
    assert "Traceback" not in err
    assert not Path("runs").exists()


def test_a_run_that_diverges_ends_with_status_3(lowbit: Run) -> None:
    status, out, err = lowbit("train", *SMALL, "--lr", "1e30", "--json")
    assert (status, out) == (3, "")
    assert "error: training stopped in epoch 1: the loss became" in err
    assert "last.ckpt, is that from before the first step" in err


def test_an_interrupted_run_says_how_to_go_on(lowbit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: ProgressDisplay, epoch: int, *others: Any) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressDisplay, "step", interrupt)
    status, out, err = lowbit("train", *SMALL, "--out", "here", "--json")
    assert (status, out) == (130, "")
    assert "interrupted in epoch 2; continue with: lowbit train --resume here" in err
    monkeypatch.undo()


def test_only_rank_zero_reports(lowbit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert lowbit("train", "--lr", "-1") == (2, "", "")


def test_help_describes_every_option(lowbit: Run) -> None:
    status, out, _ = lowbit("train", "--help")
    words = out.split()
    assert status == 0
    assert all(f"--{name.replace('_', '-')}" in " ".join(words).replace(",", " ").split() for name in FIELDS)
    assert "Bits of the weights" in " ".join(words)
    for command in ("eval", "summary", "list", "plot", "flow", "coarse", "features", "repel"):
        assert lowbit(command, "--help")[0] == 0


def test_the_first_words(lowbit: Run) -> None:
    assert lowbit("--version") == (0, f"lowbit {__version__}\n", "")
    status, out, err = lowbit("--help")
    assert (status, "lowbit COMMAND" in out, err) == (0, True, "")
    assert lowbit()[0] == 2


def test_help_does_not_wait_for_what_it_does_not_need() -> None:
    heavy = ("tyro", "lightning_fabric", "tensorboard", "sklearn", "yaml")
    code = f"import sys, lowbit.cli; lowbit.cli.main(['--help']); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_list_names_everything_that_is_registered(lowbit: Run) -> None:
    registries = dict(zip(FAMILIES, (ESTIMATORS, QUANTIZERS, MODELS, DATA, METHODS), strict=True))
    status, out, err = lowbit("list")
    assert (status, err) == (0, "")
    first_words = {line.split()[0] for line in out.splitlines() if line.strip()}
    assert {name for registry in registries.values() for name in registry.names()} <= first_words
    for family, registry in registries.items():
        status, out, err = lowbit("list", family)
        names = [line.split()[0] for line in out.splitlines()[2:] if not line.startswith(" ")]
        assert [name for name in names if name] == list(registry.names())


def test_summary_shows_the_low_bit_model_of_the_data(lowbit: Run) -> None:
    status, out, err = lowbit("summary", "--weights", "2", "--json")
    assert status == 0
    (line,) = out.splitlines()
    rows = {row["name"]: row for row in json.loads(line)["layers"]}
    assert (rows["conv2"]["weight_bits"], rows["conv2"]["activation_bits"]) == (2, 2)
    assert rows["conv1"]["weight_bits"] == 32
    assert "conv2" in err


def test_summary_of_a_given_input_needs_no_data(lowbit: Run) -> None:
    options = ["--model", "resnet20", "--data", "cifar100", "--input", "3", "32", "32", "--classes", "100"]
    status, out, err = lowbit("summary", *options, "--weights", "32", "--activations", "32")
    assert (status, err) == (0, "")
    assert "conv1" in out
    layers = json.loads(lowbit("summary", *options, "--json")[1])["layers"]
    assert layers[-1]["parameters"] == 64 * 100 + 100


def test_flow_prints_the_rates_and_keeps_the_pictures(lowbit: Run) -> None:
    status, out, err = lowbit("flow", "--grid", "8", "--perturbation", "0.02", "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert (result["dim"], result["grid"], result["linearised_rate"]) == (2, 8, pytest.approx(1))
    assert result["fitted_rate"] == pytest.approx(1, rel=0.02)
    assert result["exponential_r2"] > 0.9999 > result["fractional_power_r2"]
    assert Path(result["run"]).parent == Path("runs")
    assert all(Path(plot).stat().st_size > 10_000 for plot in result["plots"])
    status, out, err = lowbit("flow", "--grid", "8", "--equation", "ricci", "--period", "3", "--out", "here")
    assert (status, err) == (0, "")
    assert "‖Ric(g(t))‖" in out
    assert {path.name for path in Path("here").iterdir()} == {"decay.png", "curvature.png", "flow.json"}


def test_flow_has_the_defaults_of_the_experiment() -> None:
    options = {name: value for name, value in vars(FlowCommand()).items() if name not in ("out", "json")}
    assert options == asdict(FlowExperiment())


def test_coarse_reaches_zero_loss_and_writes_nothing(lowbit: Run, tmp_path: Path) -> None:
    status, out, err = lowbit("coarse", "--theta", "90", "--seeds", "2", "--bits", "3", "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert {name: result[name] for name in ("estimator", "bits", "theta", "classes", "units", "eta", "seeds")} == {
        "estimator": "relu",
        "bits": 3,
        "theta": 90,
        "classes": 2,
        "units": 24,
        "eta": 1,
        "seeds": 2,
    }
    for seed, run in enumerate(result["runs"]):
        assert (run["seed"], run["final_loss"], run["final_accuracy"]) == (seed, 0, 1)
        assert run["iterations_to_zero"] > 0 == run["coarse_gradient_norm"] < run["initial_coarse_gradient_norm"]
        assert 0 < run["cosine"] <= 1 > run["cosine_start"] > 0.9
    assert (result["summary"]["reached_zero"], result["run"], result["plots"]) == (2, None, [])
    status, out, err = lowbit("coarse", "--seeds", "1", "--iterations", "3", "--estimator", "identity")
    assert (status, err) == (0, "")
    assert "zero loss in 0 of 1 runs" in out
    assert list(tmp_path.iterdir()) == []


def test_coarse_has_the_defaults_of_the_experiment() -> None:
    options = {name: value for name, value in vars(CoarseCommand()).items() if name not in ("plot", "out", "json")}
    assert options == asdict(CoarseExperiment())


def test_features_and_repel_look_at_a_run(lowbit: Run) -> None:
    staircase = ["--weights", "32", "--activation-quantizer", "staircase", "--epochs", "1"]
    assert lowbit("train", *SMALL, *staircase, "--out", "here")[0] == 0
    status, out, err = lowbit("features", "here", "--images", "200", "--dimension", "1", "--json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    assert list(result) == ["run", "checkpoint", "epoch", "report", "pixels", "files"]
    assert result["report"]["dimensions"] == [1] * 10
    assert result["files"] == ["here/features/features.png", "here/features/features.json"]
    assert json.loads(Path("here/features/features.json").read_text()) == result
    options = ["--estimators", "identity", "log-tailed", "--steps", "4", "--batch-size", "32", "--images", "50"]
    status, out, err = lowbit("repel", "here", *options, "--lr", "0.01", "--momentum", "0", "--seed", "2")
    assert (status, err) == (0, "")
    assert "4 steps of 32 images, rate 0.01, momentum 0; loss of 50 training images" in out
    names = [
        walk["estimator"] for walk in json.loads(Path("here/repulsion/repulsion.json").read_text())["report"]["walks"]
    ]
    assert names == ["clipped", "identity", "log-tailed"]
    assert Path("here/repulsion/repulsion.png").is_file()


def test_repel_has_the_defaults_of_the_library() -> None:
    command = RepelCommand(Path("run"))
    assert Descent(steps=command.steps, lr=command.lr, momentum=command.momentum, seed=command.seed) == Descent()
    defaults = {name: parameter.default for name, parameter in inspect.signature(repel_run).parameters.items()}
    shared = ("estimators", "batch_size", "images", "checkpoint", "data_path", "out", "device")
    assert {name: getattr(command, name) for name in shared} == {name: defaults[name] for name in shared}
    defaults = {name: parameter.default for name, parameter in inspect.signature(features_of_run).parameters.items()}
    options = {name: value for name, value in vars(FeaturesCommand(Path("run"))).items() if name not in ("run", "json")}
    assert options == {name: value for name, value in defaults.items() if name != "run"}


def test_plot_names_the_pictures_it_made(lowbit: Run) -> None:
    assert lowbit("train", *SMALL, "--out", "here")[0] == 0
    status, out, err = lowbit("plot", "here")
    assert (status, err) == (0, "")
    files = out.splitlines()
    assert files
    assert all(Path(file).is_relative_to("here") and Path(file).is_file() for file in files)
    status, out, err = lowbit("plot", "here", "--out", "there", "--json")
    result = json.loads(out)
    assert (status, result["run"]) == (0, "here")
    assert [Path(file).name for file in result["plots"]] == [Path(file).name for file in files]
    assert all(Path(file).is_relative_to("there") and Path(file).is_file() for file in result["plots"])
