"""`summary` against numbers worked out by hand."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import lowbit
from lowbit._errors import ConfigError
from lowbit.layers import LayerSummary


def rows(model: nn.Module, shape: tuple[int, ...]) -> dict[str, LayerSummary]:
    return {layer.name: layer for layer in lowbit.summary(model, shape).layers}


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),  # 8×8 → 8×8
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, groups=4, bias=False),  # depthwise, 8×8 → 6×6
        nn.ConvTranspose2d(8, 3, 2, stride=2),  # 6×6 → 12×12
        nn.Flatten(),
        nn.Linear(3 * 144, 5),
    )


def test_a_float_model() -> None:
    found = rows(net(), (1, 8, 8))
    assert found["0"] == LayerSummary("0", "Conv2d", 32, 32, 36 + 4, 64 * 4 * 9, 160, 160)
    # Running mean and variance take bytes, but are not parameters.
    assert found["1"] == LayerSummary("1", "BatchNorm2d", 32, 32, 8, 0, 64, 64)
    assert found["3"] == LayerSummary("3", "Conv2d", 32, 32, 72, 36 * 8 * 9, 288, 288)
    assert found["4"] == LayerSummary("4", "ConvTranspose2d", 32, 32, 96 + 3, 36 * 8 * 3 * 4, 396, 396)
    assert found["6"] == LayerSummary("6", "Linear", 32, 32, 2160 + 5, 2160, 8660, 8660)
    assert set(found) == {"0", "1", "3", "4", "6"}


def test_a_converted_model() -> None:
    model = lowbit.convert(net(), weights=1, activations=2, overrides={"4": {"weights": 3, "activations": 32}})
    found = rows(model, (1, 8, 8))
    # 72 weights of 1 bit are 9 bytes; the sign has no scale, the input's learned scale is one float.
    assert found["3"] == LayerSummary("3", "QuantConv2d", 1, 2, 72 + 1, 36 * 8 * 9, 9 + 4, 288)
    # 96 weights of 3 bits are 36 bytes; 3 biases and 1 scale.
    assert found["4"] == LayerSummary("4", "QuantConvTranspose2d", 3, 32, 96 + 3 + 1, 3456, 36 + 12 + 4, 396)
    assert found["0"] == rows(net(), (1, 8, 8))["0"]


def test_totals_and_the_dictionary() -> None:
    result = lowbit.summary(lowbit.convert(net(), weights=1, activations=2), (1, 8, 8))
    assert result.parameters == sum(layer.parameters for layer in result.layers)
    assert result.macs == 2304 + 2592 + 3456 + 2160
    assert result.bytes == 160 + 64 + (9 + 4) + (12 + 12 + 4) + 8660
    assert result.float_bytes == 160 + 64 + 288 + 396 + 8660
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["bytes"] == result.bytes
    assert plain["layers"][3] == {
        "name": "4",
        "kind": "QuantConvTranspose2d",
        "weight_bits": 1,
        "activation_bits": 2,
        "parameters": 96 + 3 + 1,
        "macs": 3456,
        "bytes": 28,
        "float_bytes": 396,
    }


@pytest.mark.parametrize(
    ("quantizer", "bits", "scales"),
    [
        ("sign", 1, 0),
        ("sign('mean-abs')", 1, None),
        ("uniform", 2, 0),
        ("lsq", 2, 1),
        ("lsq(granularity=channel)", 2, 8),
        ("ternary", 2, 1),
        ("ternary(granularity=channel)", 2, 8),
        ("ternary(scale=none)", 2, 0),
        ("sign(scale='mean-abs', granularity=channel)", 1, 8),
        ("sign(scale='mean-abs', granularity='group:9')", 1, 8),
    ],
)
def test_scales_that_have_to_be_stored(quantizer: str, bits: int, scales: int | None) -> None:
    if scales is None:
        with pytest.raises(ConfigError, match="is not of the form"):
            lowbit.convert(net(), weights=bits, quantizer=quantizer)
        return
    row = rows(lowbit.convert(net(), weights=bits, quantizer=quantizer, overrides={"4": "float"}), (1, 8, 8))["3"]
    assert row.weight_bits == bits
    assert row.parameters == 72 + scales
    assert row.bytes == 72 * bits // 8 + 4 * scales


def test_a_shared_layer_counts_its_work_twice_and_its_weights_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.again = self.fc

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.fc(x))

    for model in (Twice(), lowbit.convert(Twice(), keep_float=())):
        found = rows(model, (4,))
        assert set(found) == {"fc"}
        assert found["fc"].macs == 2 * 16
        assert found["fc"].parameters == 20
        assert found["fc"].float_bytes == 80


def test_a_tied_weight_counts_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    found = rows(lowbit.convert(model, keep_float=()), (4,))
    assert (found["0"].parameters, found["0"].bytes, found["0"].float_bytes) == (20, 2 + 16, 80)
    assert (found["1"].parameters, found["1"].bytes, found["1"].float_bytes) == (4, 16, 16)
    assert found["1"].macs == 16


def test_work_over_tokens() -> None:
    assert rows(nn.Linear(6, 5), (7, 6))["(model)"].macs == 7 * 6 * 5


def test_a_transformer_layer_is_counted_although_it_has_a_fused_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    for model in (layer, lowbit.convert(layer, keep_float=())):
        found = rows(model, (5, 8))
        assert found["linear1"].macs == found["linear2"].macs == 5 * 8 * 16


def test_the_model_is_left_as_it_was() -> None:
    model = lowbit.convert(net(), weights=2, activations=2)
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    lowbit.summary(model, (1, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    x = torch.randn(2, 1, 8, 8)
    lowbit.calibrate(model, x)  # the scales still take their first value from data
    value = model[3].input_quantizer.quantizer.scaling.value
    assert value > 0.1
    assert not torch.equal(model(x), model[4:](nn.functional.conv2d(model[:3](x), model[3].weight, groups=4)))


@pytest.mark.parametrize("shape", [(2, 8, 8), (8, 8, 8, 8), (1, 9, 9), ()])
def test_a_shape_that_does_not_fit(shape: tuple[int, ...]) -> None:
    model = lowbit.convert(net(), weights=2, activations=2).train()
    with pytest.raises(ConfigError, match=r"the model does not take an input of shape \(1,"):
        lowbit.summary(model, shape)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    lowbit.summary(model, (1, 8, 8))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.BatchNorm1d(3), (3, 4, 4)),  # ValueError
        (nn.Sequential(nn.Flatten(2), nn.Linear(3, 3)), (3,)),  # IndexError
        (nn.TransformerEncoderLayer(8, 2, 16), (5, 6)),  # AssertionError
    ],
)
def test_errors_of_every_type_are_explained(model: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="the model does not take an input of shape"):
        lowbit.summary(model, shape)


@pytest.mark.parametrize("shape", [3, (3, -1), (3, 8.0), "3,8,8"])
def test_something_that_is_no_shape(shape: object) -> None:
    with pytest.raises(ConfigError, match="expected the shape of one example, such as"):
        lowbit.summary(net(), shape)  # type: ignore[arg-type]


def test_the_table_fits_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=80)
    result = lowbit.summary(lowbit.convert(net(), weights=1, activations=2), (1, 8, 8))
    console.print(result.render())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    row = next(line for line in text.splitlines() if "QuantConv2d" in line)
    assert row.split() == ["3", "QuantConv2d", "1", "2", "73", "2.59", "k", "13", "288"]
    total = next(line for line in text.splitlines() if "total" in line)
    assert f"{result.parameters:,}" in total
    assert "…" not in text
    assert f"{result.bytes:,} bytes, {result.float_bytes / result.bytes:.1f} times less than in float32" in text


def test_it_prints_without_a_shape_and_leaves_the_macs_out(capsys: pytest.CaptureFixture[str]) -> None:
    result = lowbit.summary(lowbit.convert(net()))
    printed = capsys.readouterr().out
    assert "QuantConv2d" in printed
    assert result.macs == 0
    assert result.bytes == lowbit.summary(lowbit.convert(net()), (1, 8, 8), show=False).bytes
    assert capsys.readouterr().out == ""
    assert "QuantConv2d" in str(result)
