"""Learned scales: the gradient's factor, the start, and what a checkpoint does to them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import lowbit
from lowbit._errors import ConfigError
from lowbit.estimators import build_estimator
from lowbit.layers import FakeQuantize
from lowbit.quantizers import build_quantizer
from lowbit.quantizers.scale import positive
from straddling import noise
from tolerances import assert_close

SHAPE = (4, 2, 6)


def unscaled_slope(layer: FakeQuantize, x: Tensor, grad: Tensor) -> Tensor:
    """∂L/∂s by autograd with s in place of the parameter: no factor, and no Scale module involved."""
    quantizer = layer.quantizer
    blocks = quantizer.granularity.blocks(x)
    scale = quantizer.scaling.value.detach().clone().requires_grad_()  # type: ignore[attr-defined, union-attr]
    y = quantizer.granularity.restore(layer._generic(blocks, scale), x)
    (slope,) = torch.autograd.grad(y, scale, grad)
    return slope


@pytest.mark.parametrize(
    ("name", "bits", "largest"), [("lsq", 3, 3), ("lsq", 8, 127), ("sign", 1, 1), ("uniform", 2, 3)]
)
@pytest.mark.parametrize(("granularity", "shared"), [("tensor", 48), ("channel", 12), ("group:3", 3)])
def test_the_gradient_of_a_weights_scale_is_divided_by_the_root_of_n_qp(
    name: str, bits: int, largest: int, granularity: str, shared: int
) -> None:
    quantizer = build_quantizer(f"{name}(scale=learned, granularity={granularity})", bits, shape=SHAPE).double()
    layer = FakeQuantize(quantizer, build_estimator("identity"))
    x, grad = noise(*SHAPE, dtype=torch.float64), noise(*SHAPE, seed=1, dtype=torch.float64)
    layer(x).backward(grad)
    value = quantizer.scaling.value  # type: ignore[attr-defined]
    assert value.numel() == 48 // shared
    assert_close(value.grad, unscaled_slope(layer, x, grad) / math.sqrt(shared * largest), "sum")


@pytest.mark.parametrize("batch", [1, 8])
def test_the_batch_does_not_count_for_an_activation(batch: int) -> None:
    quantizer = build_quantizer("unsigned", 2, batched=True).double()
    layer = FakeQuantize(quantizer, build_estimator("identity"))
    x = noise(batch, 3, 5, dtype=torch.float64).abs()
    grad = noise(batch, 3, 5, seed=1, dtype=torch.float64)
    layer(x).backward(grad)
    expected = unscaled_slope(layer, x, grad) / math.sqrt(15 * 3)
    assert_close(quantizer.scaling.value.grad, expected, "sum")  # type: ignore[attr-defined, union-attr]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_factor_does_not_touch_the_value(bits: int) -> None:
    """One scale for each of many channels of a few weights: factors of ordinary size, where rounding would show."""
    for size in (1, 2, 3, 5, 10):
        quantizer = build_quantizer("lsq(granularity=channel)", bits, shape=(500, size))
        quantizer(noise(500, size))
        assert torch.equal(quantizer.scale(noise(500, size)), quantizer.scaling.value)  # type: ignore[attr-defined]


def test_a_negative_learned_scale_acts_as_its_magnitude() -> None:
    quantizer = build_quantizer("lsq", 4)
    x = noise(20)
    y = quantizer(x)
    with torch.no_grad():
        quantizer.scaling.value.neg_()  # type: ignore[attr-defined, union-attr]
    assert torch.equal(quantizer(x), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16], ids=str)
def test_the_floor_keeps_the_inverse_and_its_gradient_finite(dtype: torch.dtype) -> None:
    scale = positive(torch.zeros((), dtype=dtype))
    assert scale > 0
    assert scale.reciprocal().isfinite()
    if dtype != torch.float16:  # its range is too small for that; parameters are never kept in it
        assert scale.reciprocal().square().isfinite()
    ordinary = torch.tensor([1e-4, 1.0, 100.0], dtype=dtype)
    assert torch.equal(positive(-ordinary), ordinary)


@pytest.mark.parametrize("granularity", ["channel", "group:4"])
def test_a_learned_scale_per_block_needs_the_shape(granularity: str) -> None:
    with pytest.raises(ConfigError, match=r"shape|groups are for weights"):
        build_quantizer(f"lsq(granularity={granularity})", 2, shape=None)


@pytest.mark.parametrize("granularity", ["rows", "group", "group:", "group:0", "group:-4", "group:x", "tensor:4"])
def test_an_unknown_granularity_is_refused(granularity: str) -> None:
    with pytest.raises(ConfigError, match="is not 'tensor', 'channel' or 'group:SIZE'"):
        build_quantizer(f"lsq(granularity='{granularity}')", 2)


def plain(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5))


def scales(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for _, p in lowbit.scale_parameters(model)]


def test_a_float_checkpoint_loads_strictly_into_a_converted_model() -> None:
    images = noise(2, 2, 8, 8, seed=9)
    model = lowbit.convert(plain(0), weights=2, activations=2, keep_float=())
    lowbit.calibrate(model, images)
    before = scales(model)
    assert len(before) == 6
    model.load_state_dict(plain(1).state_dict(), strict=True)
    lowbit.calibrate(model, images)
    expected = lowbit.convert(plain(1), weights=2, activations=2, keep_float=())
    lowbit.calibrate(expected, images)
    for old, new, right in zip(before, scales(model), scales(expected), strict=True):
        assert torch.equal(new, right)
        assert old.shape == new.shape
    assert not all(torch.equal(a, b) for a, b in zip(before, scales(model), strict=True))


def test_a_low_bit_checkpoint_brings_its_scales() -> None:
    images = noise(2, 2, 8, 8, seed=9)
    trained = lowbit.convert(plain(0), weights=2, activations=2, keep_float=())
    lowbit.calibrate(trained, images)
    follower = lowbit.convert(plain(1), weights=2, activations=2, keep_float=())
    follower.load_state_dict(trained.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(follower(images), trained(images))
    assert all(torch.equal(a, b) for a, b in zip(scales(follower), scales(trained), strict=True))


def test_a_scale_of_another_grid_is_learned_afresh() -> None:
    images = noise(2, 2, 8, 8, seed=9)
    wide = lowbit.convert(plain(0), weights=8, activations=8, keep_float=())
    lowbit.calibrate(wide, images)
    narrow = lowbit.convert(plain(1), weights=2, activations=2, keep_float=())
    narrow.load_state_dict(wide.state_dict(), strict=True)
    narrow(images)
    expected = lowbit.convert(plain(0), weights=2, activations=2, keep_float=())
    expected(images)
    assert all(torch.equal(a, b) for a, b in zip(scales(narrow), scales(expected), strict=True))
