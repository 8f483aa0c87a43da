"""The proof: what agrees is called identical, and every kind of disagreement is found and named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowbit
from deploy_nets import float_net, images, trained
from lowbit._errors import ArtefactError, ConfigError
from lowbit.deploy import Difference, Entry, Trace, adversarial_inputs, observe, save, sizes, verify
from lowbit.deploy.proof.observe import Inputs


class Other:
    """A compiled model that computes what `model` does, but for what `change` makes of each tensor."""

    def __init__(self, model: nn.Module, change: Callable[[Entry], Tensor | None] = lambda entry: entry.value) -> None:
        self.model, self.change = model, change

    def observe(self, inputs: Inputs) -> Trace:
        trace = observe(self.model, inputs)
        changed = [(entry, self.change(entry)) for entry in trace.entries]
        kept = tuple(Entry(entry.layer, entry.what, value) for entry, value in changed if value is not None)
        outputs = tuple(self.change(Entry("outputs", "output", value)) for value in trace.outputs)
        return Trace(kept, tuple(value for value in outputs if value is not None))


def moved(key: str, by: float, place: int = 5) -> Callable[[Entry], Tensor]:
    def change(entry: Entry) -> Tensor:
        if entry.key != key:
            return entry.value
        value = entry.value.clone()
        value.reshape(-1)[place] += by
        return value

    return change


def without(key: str) -> Callable[[Entry], Tensor | None]:
    return lambda entry: None if entry.key == key else entry.value


def exact_model() -> nn.Module:
    """No layer of it sums real numbers."""
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model = lowbit.convert(net, activations=2, activation_quantizer="lsq", keep_float=())
    model(torch.randn(16, 6, generator=torch.Generator().manual_seed(0)))
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {"weights": 1, "activations": 2},
        {"weights": 1},
        {"weights": 3, "activations": 2, "activation_quantizer": "staircase"},
        {"weights": 2, "activations": 4, "keep_float": (), "activation_quantizer": "lsq"},
    ],
)
def test_an_artefact_is_identical_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    model = trained(**options)
    size = save(model, tmp_path / "net.lowbit")
    report = lowbit.verify(model, tmp_path / "net.lowbit", images())
    report.require_identical()
    assert report.identical
    assert report.explained
    assert report.first_difference is None
    assert report.explanation == ""
    assert report.outputs_max_difference == 0
    assert report.predictions_equal is True
    assert all(layer.differing == 0 and layer.output_difference == 0 for layer in report.layers)
    assert report.bytes_after == size
    assert report.bytes_before == sum(t.nbytes for t in float_net().state_dict().values())
    assert report.other == "net.lowbit"


def test_every_code_on_every_input_is_counted(tmp_path: Path) -> None:
    model = trained(weights=1, activations=2)
    save(model, tmp_path / "a.lowbit")
    report = verify(model, str(tmp_path / "a.lowbit"), [images(), images(2)])
    calls = [images(), images(2), *(case.inputs for case in adversarial_inputs(model, images()))]
    expected = sum(observe(model, call).tensors()["3:codes"].numel() for call in calls)
    assert [layer.layer for layer in report.layers] == ["3", "6", "9"]
    assert report.layers[0].codes == expected
    assert report.inputs == "2 given; 17 made to hurt (seed 0)"
    assert verify(model, tmp_path / "a.lowbit", images(), adversarial=False).inputs == "1 given"


def test_what_loading_forgets_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(weights=1, activations=2)
    save(model, tmp_path / "a.lowbit")
    module = sys.modules["lowbit.deploy.files.artefact"]
    whole = module._commit

    def forgetful(target: nn.Module, fitted: Any) -> None:
        fitted.values.pop(1)
        whole(target, fitted)

    monkeypatch.setattr(module, "_commit", forgetful)
    assert not verify(model, tmp_path / "a.lowbit", images()).identical


def test_a_file_of_another_training_is_found_out(tmp_path: Path) -> None:
    model, other = trained(weights=1, activations=2), trained(weights=1, activations=2)
    with torch.no_grad():
        other[6].weight[0, 0] *= -1  # type: ignore[index]
    save(other, tmp_path / "a.lowbit")
    report = verify(model, tmp_path / "a.lowbit", images())
    assert report.first_difference is not None
    assert (report.first_difference.layer, report.first_difference.what) == ("6", "output")
    with pytest.raises(ArtefactError, match=r"a.lowbit does not compute what.*output of '6' on input 'given 0' at"):
        report.require_identical()


def test_the_first_code_that_differs_is_named() -> None:
    model = exact_model()
    report = verify(model, Other(model, moved("3:codes", 1)), torch.randn(4, 6))
    first = report.first_difference
    assert isinstance(first, Difference)
    assert (first.layer, first.what, first.input, first.position) == ("3", "codes", "given 0", (0, 5))
    assert first.got == first.expected + 1  # type: ignore[operator]
    assert (first.differing, first.elements) == (1, 32)
    assert not report.explained
    assert "no float layer runs before it" in report.explanation
    assert report.layers[1].differing == 18  # one in each run
    assert "DIFFERENT: codes of '3'" in report._caption()


def test_an_exact_output_must_be_the_same_bit_for_bit() -> None:
    model = exact_model()
    report = verify(model, Other(model, moved("0:output", 1e-7)), torch.randn(4, 6), adversarial=False)
    assert report.first_difference is not None
    assert report.first_difference.what == "output"
    assert report.explanation == ""


@pytest.mark.parametrize(("by", "identical"), [(1e-6, True), (1.0, False)])
def test_float_outputs_may_differ_by_rounding_only(by: float, identical: bool) -> None:
    model = trained(weights=1)
    with torch.no_grad():
        model[11].weight *= 1e-3  # type: ignore[index]
    scale = float(observe(model, images()).tensors()["9:output"].abs().max())
    report = verify(model, Other(model, moved("9:output", by * scale)), images(), adversarial=False)
    assert report.identical is identical
    assert report.layers[2].output_difference == pytest.approx(by * scale, rel=0.2)
    assert not report.layers[2].exact
    assert report.explained is identical


@pytest.mark.parametrize(("by", "identical"), [(1e-6, True), (0.5, False)])
def test_what_the_model_returns_is_compared_too(by: float, identical: bool) -> None:
    model = trained(weights=1, activations=2)
    scale = float(model(images()).detach().abs().max())
    report = verify(model, Other(model, moved("outputs:output", by * scale)), images(), adversarial=False)
    assert report.identical is identical
    assert report.outputs_max_difference == pytest.approx(by * scale, rel=0.2)
    if not identical:
        assert report.first_difference is not None
        assert report.first_difference.layer == "outputs"


def test_other_predictions_are_noticed() -> None:
    model = trained(weights=1, activations=2)
    worst = model(images())[0].argmin()
    report = verify(model, Other(model, moved("outputs:output", 1e9, int(worst))), images(), adversarial=False)
    assert report.predictions_equal is False


def on_a_tie() -> tuple[nn.Module, Tensor]:
    """A float layer whose outputs, for one of two inputs, lie exactly on a tie of the next layer."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    model = lowbit.convert(net, activations=3, activation_quantizer="lsq", keep_float=("first",))
    model(torch.randn(8, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[1].input_quantizer.quantizer.scaling.value.fill_(0.5)
    return model.eval(), torch.tensor([[0.75, 0.3]])


@pytest.mark.parametrize(("place", "explained"), [(0, True), (1, False)])
def test_rounding_before_a_tie_is_told_from_a_fault(place: int, explained: bool) -> None:
    model, x = on_a_tie()
    report = verify(model, Other(model, moved("1:codes", -1, place)), x, adversarial=False)
    assert not report.identical
    assert report.explained is explained
    assert "float layers 0" in report.explanation
    assert ("the order of a sum explains it" in report.explanation) is explained
    assert ("1 codes lie too far from a tie" in report.explanation) is not explained


def test_two_steps_are_too_many_for_rounding() -> None:
    model, x = on_a_tie()
    assert not verify(model, Other(model, moved("1:codes", -2, 0)), x, adversarial=False).explained


def test_codes_must_be_shown_but_outputs_need_not() -> None:
    model = exact_model()
    x = torch.randn(4, 6)
    report = verify(model, Other(model, without("0:output")), x)
    assert report.identical
    assert report.layers[0].output_difference is None
    report = verify(model, Other(model, without("3:codes")), x)
    assert report.first_difference is not None
    assert (report.first_difference.position, report.first_difference.got) == (None, "none")
    report = verify(model, Other(model, without("outputs:output")), x)
    assert report.first_difference is not None
    assert report.first_difference.expected == "1 tensors"


def test_another_shape_is_a_difference() -> None:
    model = exact_model()

    def cut(entry: Entry) -> Tensor:
        return entry.value[:, :1] if entry.key == "3:codes" else entry.value

    report = verify(model, Other(model, cut), torch.randn(4, 6), adversarial=False)
    assert report.first_difference is not None
    assert (report.first_difference.expected, report.first_difference.got) == ("shape (4, 8)", "shape (4, 1)")


def test_a_layer_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x))

    model = lowbit.convert(Twice(), activations=4, activation_quantizer="lsq", keep_float=())
    x = torch.randn(3, 4)
    model(x)
    report = verify(model.eval(), Other(model, moved("fc#2:codes", 1)), x, adversarial=False)
    assert report.first_difference is not None
    assert report.first_difference.layer == "fc#2"
    assert [layer.layer for layer in report.layers] == ["fc", "fc#2"]


@pytest.mark.parametrize(
    ("net", "shape"),
    [(float_net(), "2×3×8×8"), (nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)), "2×5")],
)
def test_without_inputs_a_shape_is_guessed(net: nn.Module, shape: str) -> None:
    model = lowbit.convert(net, weights=2, keep_float=())
    report = verify(model, Other(model))
    assert report.identical
    assert report.inputs.startswith(f"one drawn example of the guessed shape {shape};")


def test_inputs_that_cannot_be_guessed_or_are_none(tmp_path: Path) -> None:
    model = lowbit.convert(nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2)), keep_float=())
    with pytest.raises(ConfigError, match=r"give verify\(\) inputs"):
        verify(model, Other(model))
    with pytest.raises(ConfigError, match="an empty list of inputs"):
        verify(model, Other(model), [])
    assert verify(model, Other(model), torch.tensor([[0, 2, 1]])).identical
    with pytest.raises(ConfigError, match="a path or a compiled model; int was given"):
        verify(model, 3, torch.tensor([0]))  # type: ignore[arg-type]
    with pytest.raises(ArtefactError, match="there is no file"):
        verify(model, tmp_path / "a.onnx", torch.tensor([0]))
    with pytest.raises(ArtefactError, match="there is no file"):
        verify(model, tmp_path / "a.lowbit", torch.tensor([0]))


def test_a_runtime_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = exact_model()
    (tmp_path / "a.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "lowbit.deploy.onnx.runner", None)
    with pytest.raises(ConfigError, match=r"'a.onnx' cannot be run here.*pip install 'lowbit\[onnx\]'"):
        verify(model, tmp_path / "a.onnx", torch.randn(2, 6))


def test_a_runner_of_onnx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = exact_model()

    class Runner:
        @staticmethod
        def run(path: Path, inputs: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], list[Tensor]]:
            trace = observe(model, inputs)
            return {key: value for key, value in trace.tensors().items() if "codes" in key}, list(trace.outputs)

    (tmp_path / "a.qonnx").write_bytes(b"123")
    monkeypatch.setitem(sys.modules, "lowbit.deploy.onnx.runner", Runner)  # type: ignore[arg-type]
    report = verify(model, tmp_path / "a.qonnx", torch.randn(2, 6))
    assert report.identical
    assert report.bytes_after == 3


def test_the_report_in_words_and_as_json() -> None:
    model = trained(weights=1, activations=2)
    report = verify(model, Other(model), images())
    text = str(report)
    for part in ("the Other against the trained model", "whole numbers", "identical", "still float", "bytes before"):
        assert part in text
    values = json.loads(json.dumps(report.to_dict()))
    assert values["identical"] is True
    assert values["layers"][0]["layer"] == "3"
    assert values["bytes_after"] == sizes(model).after
    assert [name for name, _ in values["float_tensors"]][:2] == ["0.weight", "11.weight"]


def test_the_model_is_left_as_it_was() -> None:
    model = trained(weights=1, activations=2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    verify(model, Other(model, moved("6:codes", 1)), images())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
