"""`lowbit.export`: arguments, files, proof."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("qonnx")
pytest.importorskip("torch.onnx.ops")

import onnx

import lowbit
from lowbit import ConfigError, ExportError, LowbitError
from lowbit.deploy import observe
from lowbit.deploy.onnx import twins
from lowbit.deploy.onnx.dialects import DIALECTS
from lowbit.deploy.onnx.file import trace, write
from lowbit.deploy.onnx.parts import IntegerLayer
from lowbit.deploy.onnx.runner import run
from lowbit.layers import FakeQuantize
from lowbit.quantizers import Grid
from lowbit.quantizers.sign import Sign

EXAMPLE = torch.linspace(-2, 2, 4 * 6).reshape(4, 6)
OPTIONS: dict[str, Any] = {"weights": 2, "activations": 4, "activation_quantizer": "lsq", "keep_float": ()}


def small(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = lowbit.convert(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), **{**OPTIONS, **options})
    lowbit.calibrate(model, EXAMPLE)
    return model


def test_a_file_and_its_proof(tmp_path: Path) -> None:
    model = small().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "torch.export")}
    exported = lowbit.export(model, tmp_path / "model.onnx", EXAMPLE[:1])  # one example, any batch size afterwards
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (exported.to, exported.form, exported.opset) == ("onnx", "int8", 21)
    assert exported.size == exported.path.stat().st_size == (tmp_path / "model.onnx").stat().st_size
    assert exported.report is not None
    assert exported.report.identical
    assert exported.report.other == "model.onnx"
    assert set(exported.layers) == {"0", "2"}
    assert "integer kernel" in exported.layers["2"]
    assert "model.onnx: onnx, int8, opset 21" in str(exported)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert "forward" not in vars(model[0])
    assert levels == {name: logging.getLogger(name).level for name in levels}
    content = (tmp_path / "model.onnx").read_bytes()
    assert not any(text in content for text in (b"stack_trace", b".py", b"pkg.torch"))
    file = onnx.load(tmp_path / "model.onnx")
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [value.name for value in (*file.graph.input, *file.graph.output)] == ["input", "output"]


@pytest.mark.parametrize(("name", "form"), [("model.qonnx", "float"), ("model.lowbit", "packed")])
def test_other_kinds_of_file(name: str, form: str, tmp_path: Path) -> None:
    exported = lowbit.export(small(), tmp_path / name, EXAMPLE, inputs=[EXAMPLE * 2])
    assert exported.form == form
    assert exported.report is not None
    assert exported.report.identical
    assert exported.report.inputs.startswith("2 given")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_lowbit_file_needs_no_example(tmp_path: Path) -> None:
    assert lowbit.export(small(), tmp_path / "a.lowbit", check=False).report is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "a.txt"}, "expected .onnx, .qonnx or .lowbit"),
        ({"to": "onxx"}, "did you mean 'onnx'"),
        ({"to": "qonnx"}, "ends in .qonnx"),
        ({"form": "int5"}, "did you mean 'int[48]'"),
        ({"path": "a.qonnx", "form": "int8"}, "to='qonnx' has the forms: float"),
        ({"opset": 20}, "choose from 21, 25"),
        ({"opset": True}, "choose from 21, 25"),
        ({"path": "missing/a.onnx"}, "there is no folder"),
        ({"example_input": None}, "needs an example_input"),
        ({"example_input": [1.0]}, "a batch that the model takes"),
        ({"example_input": torch.tensor(1.0)}, "a batch that the model takes"),
        ({"example_input": (torch.ones(2, 6), torch.ones(3, 6))}, "is the batch, of one size"),
        ({"model": nn.Linear(6, 3)}, "convert it with lowbit.convert"),
        ({"model": "model"}, "takes a torch.nn.Module"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"model": small(), "path": "a.onnx", "example_input": EXAMPLE, **arguments}
    with pytest.raises(ConfigError, match=message):
        lowbit.export(given.pop("model"), tmp_path / given.pop("path"), **given)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qonnx", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs onnxscript, qonnx: pip install 'lowbit\[onnx\]'"):
        lowbit.export(small(), tmp_path / "a.qonnx", EXAMPLE)


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(4, 6))


def fixed() -> nn.Module:
    model = lowbit.convert(Fixed(), **OPTIONS)
    lowbit.calibrate(model, EXAMPLE)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lowbit.convert(nn.Sequential(nn.Linear(6, 3)), **OPTIONS), "layer '0': the scale .* is not known yet"),
        (lambda: small().double(), "is float64: files hold float32 models"),
        (fixed, "torch cannot export this model for a free batch size"),
    ],
)
def test_models_that_cannot_be_exported(make: Callable[[], nn.Module], message: str, tmp_path: Path) -> None:
    model = make()
    dtype = next(model.parameters()).dtype
    with pytest.raises(ExportError, match=message):
        lowbit.export(model, tmp_path / "a.onnx", EXAMPLE.to(dtype))
    assert not list(tmp_path.iterdir())


def test_a_file_that_computes_something_else_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = IntegerLayer.of

    def wrong(layer: Any, name: str) -> IntegerLayer:
        part = right(layer, name)
        return replace(part, multiplier=part.multiplier * (1 + 2**-22)) if name == "2" else part

    monkeypatch.setattr(twins.IntegerLayer, "of", staticmethod(wrong))
    (tmp_path / "a.onnx").write_bytes(b"what was there")
    with pytest.raises(ExportError, match="first difference: output of '2'"):
        lowbit.export(small(), tmp_path / "a.onnx", EXAMPLE, form="float")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"what was there"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("lowbit.deploy.export")

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module.os, "replace", full)
    with pytest.raises(LowbitError, match="no space left"):
        lowbit.export(small(), tmp_path / "a.lowbit", EXAMPLE)
    assert not list(tmp_path.iterdir())


class Pair(nn.Module):
    """Two inputs; one tensor returned twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 4)
        self.right = nn.Linear(6, 4)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        both = self.left(x) + self.right(y)
        return {"both": both, "more": (torch.relu(both), both)}


def test_several_inputs_and_outputs_and_a_compiled_part(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = lowbit.convert(Pair(), **OPTIONS)
    lowbit.calibrate(model, EXAMPLE, EXAMPLE)
    model.left = torch.compile(model.left, backend="eager")
    exported = lowbit.export(model, tmp_path / "a.onnx", (EXAMPLE, -EXAMPLE), opset=25)
    assert exported.report is not None
    assert exported.report.identical
    assert len(onnx.load(tmp_path / "a.onnx").graph.output) == 3


def test_a_float_layer_first_is_no_error(tmp_path: Path) -> None:
    exported = lowbit.export(small(keep_float=("first",)), tmp_path / "a.onnx", EXAMPLE, form="float")
    assert exported.report is not None
    assert exported.report.identical or exported.report.explained


class Doubled(Sign):
    """A quantizer whose form the export does not know: n = ±1, with another threshold."""

    @property
    def integer_grid(self) -> Grid:
        return Grid(-1, 2)

    def normalize(self, x: Tensor, scale: Tensor) -> Tensor:
        return x - 0.25


def test_a_quantizer_of_an_unknown_form_is_traced(tmp_path: Path) -> None:
    model = small().eval()
    model[2].input_quantizer = FakeQuantize(Doubled(), model[2].input_quantizer.rule)
    traced = trace(model, (EXAMPLE,), 21)
    expected = observe(model, EXAMPLE).tensors()
    for (to, form), dialect in DIALECTS.items():
        path = tmp_path / f"{form}.{to}"
        onnx.save(write(traced, dialect)[0], path)
        seen, _ = run(path, EXAMPLE)
        assert all(torch.equal(value, expected[key].to(value.dtype)) for key, value in seen.items())
