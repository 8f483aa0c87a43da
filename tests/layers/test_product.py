"""In evaluation a low-bit layer sums whole numbers; an integer oracle computes the same."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lowbit
from lowbit.layers import ExactBatchNorm2d, affine, is_integer, largest_sum

LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), (4, 11)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1, stride=2, dilation=2), (4, 11, 9)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, padding=1), (6, 8, 8)),
    "conv3d": (nn.Conv3d(2, 4, 2), (2, 4, 5, 4)),
    "transpose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5)),
    "linear": (nn.Linear(12, 7), (12,)),
    "no bias": (nn.Linear(12, 7, bias=False), (3, 12)),
}
QUANTIZERS = {
    "w1a1": {"weights": 1, "activations": 1, "activation_quantizer": "sign"},
    "w1a2": {"weights": 1, "activations": 2, "quantizer": "sign(scale=mean-abs)"},
    "w2a2": {"weights": 2, "activations": 2},
    "ternary": {"weights": 2, "activations": 4, "quantizer": "ternary", "activation_quantizer": "lsq"},
    "uniform": {"weights": 3, "activations": 3, "quantizer": "uniform(scale=max-abs)"},
    "w8a8": {"weights": 8, "activations": 8, "quantizer": "lsq(scale=max-abs)"},
}


def build(kind: str, setting: str) -> tuple[nn.Module, Tensor]:
    layer, shape = LAYERS[kind]
    torch.manual_seed(3)
    converted = lowbit.convert(copy.deepcopy(layer), keep_float=(), **QUANTIZERS[setting])  # type: ignore[arg-type]
    x = torch.randn(3, *shape)
    lowbit.calibrate(converted, x)
    return converted.eval(), x


def oracle(layer: nn.Module, kind: str, x: Tensor) -> np.ndarray:
    """The law of docs/semantics.md: an integer sum, a product and a sum in float32."""
    n_x, unit_x = layer.input_quantizer.integers(x)
    n_w, unit_w = layer.weight_quantizer.integers(layer.weight)
    plain = copy.deepcopy(LAYERS[kind][0]).double()
    with torch.no_grad():
        plain.weight.copy_(n_w)
        if plain.bias is not None:
            plain.bias.zero_()
        sums = plain(n_x.double())
    assert torch.equal(sums, sums.round())
    axis = -1 if isinstance(plain, nn.Linear) else 1
    shape = [1] * sums.ndim
    shape[axis] = -1
    multiplier = (unit_x * unit_w).detach().numpy()
    multiplier = multiplier.reshape(shape) if multiplier.ndim else multiplier
    y = sums.numpy().astype(np.float32) * multiplier.astype(np.float32)
    return y if layer.bias is None else y + layer.bias.detach().numpy().reshape(shape)


@pytest.mark.parametrize("setting", QUANTIZERS)
@pytest.mark.parametrize("kind", LAYERS)
def test_evaluation_is_the_integer_oracle(kind: str, setting: str) -> None:
    layer, x = build(kind, setting)
    assert is_integer(layer)
    with torch.no_grad():
        assert np.array_equal(layer(x).numpy(), oracle(layer, kind, x))


@pytest.mark.parametrize("kind", LAYERS)
def test_training_and_evaluation_agree_up_to_rounding(kind: str) -> None:
    layer, x = build(kind, "w2a2")
    evaluated = layer(x)
    torch.testing.assert_close(layer.train()(x), evaluated)


def test_gradients_in_evaluation_are_those_of_training() -> None:
    layer, x = build("conv2d", "w2a2")
    found = []
    for training in (False, True):
        layer.train(training)
        layer.zero_grad()
        given = x.clone().requires_grad_()
        layer(given).square().sum().backward()
        assert given.grad is not None
        found.append((given.grad, *(p.grad.clone() for p in layer.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    layer.eval()
    with torch.no_grad():
        without = layer(x)
    assert torch.equal(layer(x), without)


def test_sums_beyond_float32_are_exact() -> None:
    layer = lowbit.convert(nn.Linear(4096, 2, bias=False), keep_float=(), weights=8, activations=8)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.weight[:, 1::2] = 0.5
    x = torch.rand(2, 4096)
    lowbit.calibrate(layer, x)
    assert largest_sum(layer, 4096) > 2**24
    layer.eval()
    n_x, unit_x = layer.input_quantizer.integers(x)
    n_w, unit_w = layer.weight_quantizer.integers(layer.weight)
    sums = n_x.long() @ n_w.long().T
    with torch.no_grad():
        assert torch.equal(layer(x), sums.float() * (unit_x * unit_w))


def test_the_dtype_is_that_of_training() -> None:
    layer, x = build("linear", "w2a2")
    for dtype in (torch.bfloat16, torch.float64):
        other = copy.deepcopy(layer).to(dtype)
        assert other(x.to(dtype)).dtype == other.train()(x.to(dtype)).dtype == dtype
    layer.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_layers_that_stay_float() -> None:
    grouped = lowbit.convert(
        nn.Linear(8, 4), keep_float=(), weights=1, activations=2, quantizer="sign(scale=mean-abs, granularity=group:4)"
    )
    weight_only = lowbit.convert(nn.Linear(8, 4), keep_float=(), weights=1)
    by_channel = lowbit.convert(
        nn.Linear(8, 4),
        keep_float=(),
        weights=1,
        activations=2,
        activation_quantizer="unsigned(scale=none, granularity=channel)",
    )
    for layer in (grouped, weight_only, by_channel):
        assert not is_integer(layer)


@pytest.mark.parametrize("affine_", [True, False])
def test_batch_normalisation_rounds_twice(affine_: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5, affine=affine_)
    norm(torch.randn(64, 5, 3, 3) * 3 + 1)
    if affine_:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    model = lowbit.convert(nn.Sequential(nn.Conv2d(5, 5, 1), norm), keep_float=())
    exact = model[1]
    assert type(exact) is ExactBatchNorm2d
    x = torch.randn(7, 5, 9, 9) * 20
    exact.eval()
    norm.eval()
    slope, offset = (t.detach().numpy().reshape(1, -1, 1, 1) for t in affine(exact))
    assert np.array_equal(exact(x).detach().numpy(), x.numpy() * slope + offset)
    torch.testing.assert_close(exact(x), norm(x))
    assert exact.state_dict().keys() == norm.state_dict().keys()


def test_without_running_statistics_nothing_changes() -> None:
    norm = nn.BatchNorm2d(5, track_running_stats=False)
    model = lowbit.convert(nn.Sequential(nn.Conv2d(5, 5, 1), norm), keep_float=()).eval()
    x = torch.randn(4, 5, 3, 3)
    assert torch.equal(model[1](x), norm(x))
