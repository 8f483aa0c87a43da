"""What a run of a converted model shows."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lowbit
from deploy_nets import images, trained
from lowbit.deploy import observe
from lowbit.deploy.proof.observe import NO_CODE, flatten


def test_codes_come_before_the_output_in_the_order_of_execution() -> None:
    trace = observe(trained(weights=1, activations=2), images())
    assert [entry.key for entry in trace.entries] == [
        f"{layer}:{what}" for layer in ("3", "6", "9") for what in ("codes", "output")
    ]
    assert list(trace.tensors()) == [entry.key for entry in trace.entries]


def test_codes_are_the_whole_numbers_of_the_input_and_outputs_those_of_the_layer() -> None:
    model, x = trained(weights=1, activations=2), images()
    shown = observe(model, x).tensors()
    with torch.no_grad():
        before = model[:3](x)  # type: ignore[index]
        n, unit = model[3].input_quantizer.integers(before)  # type: ignore[index]
        assert torch.equal(shown["3:codes"], n.to(torch.int16))
        assert shown["3:codes"].dtype == torch.int16
        assert torch.equal(unit * shown["3:codes"], model[3].input_quantizer(before))  # type: ignore[index]
        assert torch.equal(shown["3:output"], model[3](before))  # type: ignore[index]


def test_an_output_is_not_what_an_in_place_relu_made_of_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    model = lowbit.convert(model, keep_float=())
    assert (observe(model, torch.randn(8, 4)).tensors()["0:output"] < 0).any()


def test_a_layer_called_twice_is_numbered() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.fc(x)))

    model = lowbit.convert(Twice(), activations=1, activation_quantizer="sign", keep_float=())
    keys = list(observe(model, torch.randn(2, 4)).tensors())
    assert keys == ["fc:codes", "fc:output", "fc#2:codes", "fc#2:output"]


def test_a_quantized_relu_shows_codes_and_values() -> None:
    model = trained(weights=32, activations=2, activation_quantizer="staircase", keep_float=())
    shown = observe(model, images()).tensors()
    alpha = model[2].input_quantizer.quantizer.scale(torch.zeros(()))  # type: ignore[index]
    assert torch.equal(shown["2:output"], shown["2:codes"] * alpha)
    assert set(shown["2:codes"].unique().tolist()) == {0, 1, 2, 3}


def test_a_layer_whose_weight_alone_is_low_bit_has_no_codes() -> None:
    assert list(observe(trained(weights=1), images()).tensors()) == ["3:output", "6:output", "9:output"]


def test_keyword_arguments_and_structured_results() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
            return {"a": self.fc(input=x), "b": [y, (x,)], "c": 3}

    model = lowbit.convert(Odd(), activations=1, activation_quantizer="sign", keep_float=())
    x, y = torch.randn(2, 4), torch.randn(3)
    trace = observe(model, (x, y))
    assert [tuple(t.shape) for t in trace.outputs] == [(2, 4), (3,), (2, 4)]
    assert "fc:codes" in trace.tensors()
    assert list(flatten(None)) == []


def test_not_a_number_has_a_code_of_its_own() -> None:
    model = trained(weights=1, activations=2)
    x = images()
    x[0] = torch.nan
    codes = observe(model, x).tensors()["3:codes"]
    assert (codes[0] == NO_CODE).all()
    assert (codes[1:] >= 0).all()


def test_the_model_is_left_as_it_was() -> None:
    model = trained(weights=1, activations=2).train()
    model[1].eval()  # type: ignore[index]
    modes = [m.training for m in model.modules()]
    before = copy.deepcopy(model.state_dict())
    observe(model, images())
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_go_when_the_model_fails() -> None:
    model = trained(weights=1, activations=2)
    with pytest.raises(RuntimeError):
        observe(model, torch.zeros(1, 7, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler uses what torch itself deprecates
def test_a_compiled_model_is_observed_too() -> None:
    model = trained(weights=1, activations=2)
    expected = observe(model, images()).tensors()
    shown = observe(torch.compile(model), images()).tensors()  # type: ignore[arg-type]
    assert shown.keys() == expected.keys()
    assert all(torch.equal(shown[key], expected[key]) for key in expected)
