"""lsq and unsigned: Esser et al. 2020, values and both gradients against the paper's formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowbit.estimators import build_estimator
from lowbit.layers import FakeQuantize
from lowbit.quantizers import build_quantizer
from straddling import around, noise
from tolerances import assert_close


def reference(v: np.ndarray, s: float, low: int, high: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """v̂, ∂v̂/∂v and ∂v̂/∂s (before its factor), element by element; np.round goes to the even number."""

    @np.vectorize
    def value(v: float) -> float:
        return s * min(max(np.round(v / s), low), high)

    @np.vectorize
    def by_v(v: float) -> float:
        return 1.0 if low <= v / s <= high else 0.0

    @np.vectorize
    def by_s(v: float) -> float:
        if v / s < low:
            return float(low)
        return float(high) if v / s > high else -v / s + np.round(v / s)

    return value(v), by_v(v), by_s(v)


def layer_with(spec: str, bits: int, scale: float) -> FakeQuantize:
    quantizer = build_quantizer(spec, bits, batched=False).double()
    quantizer.scaling.value.data.fill_(scale)  # type: ignore[attr-defined, union-attr]
    quantizer.scaling.initialized.fill_(True)  # type: ignore[attr-defined]
    return FakeQuantize(quantizer, build_estimator("clipped"))


def check(spec: str, bits: int, scale: float, x: Tensor) -> None:
    layer = layer_with(spec, bits, scale)
    grid = layer.quantizer.grid
    x = x.clone().requires_grad_()
    grad = noise(x.numel(), seed=7, dtype=x.dtype)
    y = layer(x)
    y.backward(grad)
    value, by_x, by_s = (torch.tensor(part) for part in reference(x.detach().numpy(), scale, grid.low, grid.high))
    assert x.grad is not None
    assert_close(y.detach(), value, "formula")
    assert_close(x.grad, grad * by_x, "formula")
    expected = (grad * by_s).sum() / (x.numel() * grid.high) ** 0.5
    slope = layer.quantizer.scaling.value.grad  # type: ignore[attr-defined, union-attr]
    assert_close(slope, expected, "sum")


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("spec", ["lsq", "unsigned"])
@pytest.mark.parametrize("scale", [0.25, 1.0, 8.0])
def test_on_and_around_every_threshold(spec: str, bits: int, scale: float) -> None:
    """With a scale that is a power of two, x/s is exact: the points lie on the ties and ends themselves."""
    if spec == "lsq" and bits == 1:
        return
    grid = build_quantizer(spec, bits).grid
    halves = torch.arange(2 * grid.low - 3, 2 * grid.high + 4, dtype=torch.float64) / 2
    check(spec, bits, scale, scale * around(halves))


@given(
    bits=st.integers(2, 8),
    scale=st.floats(1e-3, 1e3),
    z=st.lists(st.floats(-200, 200).filter(lambda z: abs(z * 2 - round(z * 2)) > 1e-6), min_size=1, max_size=30),
)
def test_anywhere(bits: int, scale: float, z: list[float]) -> None:
    check("lsq", bits, scale, torch.tensor(z, dtype=torch.float64) * scale)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("spec", ["lsq", "unsigned"])
def test_the_first_scale_is_two_mean_over_the_root_of_the_largest_code(spec: str, bits: int) -> None:
    quantizer = build_quantizer(spec, bits).double()
    x = noise(5, 6, dtype=torch.float64).abs()
    quantizer(x)
    expected = 2 * x.numpy().mean() / np.sqrt(quantizer.grid.high)
    assert_close(
        quantizer.scaling.value.detach(),  # type: ignore[attr-defined, union-attr]
        torch.tensor(expected),
        "formula",
    )


def test_grids() -> None:
    assert [(g.low, g.high) for g in (build_quantizer("lsq", k).grid for k in (2, 3, 8))] == [
        (-2, 1),
        (-4, 3),
        (-128, 127),
    ]
    assert [(g.low, g.high) for g in (build_quantizer("unsigned", k).grid for k in (1, 2, 8))] == [
        (0, 1),
        (0, 3),
        (0, 255),
    ]


@pytest.mark.parametrize("spec", ["lsq", "unsigned"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_largest_element_keeps_its_gradient_under_max_abs(spec: str, bits: int) -> None:
    """x·(1/s) with s = max|x|/Qp may round to more than Qp; the clip would then stop the largest weight for good."""
    layer = FakeQuantize(build_quantizer(f"{spec}(scale=max-abs)", bits), build_estimator("clipped"))
    for seed in range(60):
        x = noise(16, seed=seed).abs().requires_grad_()
        y = layer(x)
        y.sum().backward()
        assert x.grad is not None
        assert_close(x.grad, torch.ones(16), "formula")
        assert int(layer.quantizer.codes(x).max()) == layer.quantizer.grid.high
        assert_close(y.detach().max(), x.detach().max(), "requantized")


def test_without_a_scale_unsigned_fills_the_unit_interval() -> None:
    quantizer = build_quantizer("unsigned(scale=none)", 2)
    x = torch.tensor([-1.0, 0.0, 0.16, 0.17, 0.49, 0.51, 0.84, 1.0, 7.0])
    assert_close(quantizer(x), torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3]) / 3, "formula")
