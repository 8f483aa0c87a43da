"""uniform: Chen et al. 2024 (Q_k), and DoReFa's weights with transform=tanh."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowbit._errors import ConfigError
from lowbit.estimators import build_estimator
from lowbit.layers import FakeQuantize
from lowbit.quantizers import build_quantizer
from straddling import noise
from tolerances import assert_close

W = noise(3, 2, 4, seed=2, dtype=torch.float64)


def reference(row: np.ndarray, bits: int) -> np.ndarray:
    n = 2**bits - 1
    return 2 / n * np.round(n * (row / (2 * np.max(np.abs(row))) + 0.5)) - 1


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("transform", ["none", "tanh"])
def test_values_against_the_formula(bits: int, transform: str) -> None:
    x = W.numpy().flatten()
    expected = reference(np.tanh(x) if transform == "tanh" else x, bits).reshape(W.shape)
    assert_close(build_quantizer(f"uniform(transform={transform})", bits)(W), torch.tensor(expected), "formula")


@pytest.mark.parametrize(("granularity", "rows"), [("channel", (3, 8)), ("group:4", (6, 4))])
@pytest.mark.parametrize("scale", ["none", "max-abs"])
def test_each_block_has_its_own_range(granularity: str, rows: tuple[int, int], scale: str) -> None:
    blocks = W.numpy().reshape(rows)
    factor = 1 if scale == "none" else np.abs(blocks).max(1, keepdims=True)
    expected = (factor * np.stack([reference(row, 3) for row in blocks])).reshape(W.shape)
    result = build_quantizer(f"uniform(granularity={granularity}, scale={scale})", 3)(W)
    assert_close(result, torch.tensor(expected), "formula")


def test_two_bits_are_four_levels_without_a_zero() -> None:
    values = build_quantizer("uniform", 2)(torch.linspace(-1, 1, 101, dtype=torch.float64))
    assert_close(values.unique(), torch.tensor([-1, -1 / 3, 1 / 3, 1], dtype=torch.float64), "formula")


def test_ties_go_to_the_even_code() -> None:
    """With M = 3 and 2 bits, z = (x + 3)/2 is exact: x = −2, 0, 2 are the ties 0.5, 1.5, 2.5."""
    x = torch.tensor([3.0, -2.0, 0.0, 2.0])
    assert build_quantizer("uniform", 2).codes(x).tolist() == [3, 0, 2, 2]


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_largest_element_stays_in_range_and_keeps_its_gradient(bits: int) -> None:
    layer = FakeQuantize(build_quantizer("uniform", bits), build_estimator("clipped"))
    for seed in range(60):
        x = noise(9, seed=seed).requires_grad_()
        layer(x).sum().backward()
        assert x.grad is not None
        assert (x.grad > 0).all()


@pytest.mark.parametrize("transform", ["none", "tanh"])
def test_gradient_holds_the_range_constant(transform: str) -> None:
    x = W.clone().requires_grad_()
    grad = noise(3, 2, 4, seed=3, dtype=torch.float64)
    layer = FakeQuantize(build_quantizer(f"uniform(transform={transform})", 4), build_estimator("identity"))
    layer(x).backward(grad)
    t = np.tanh(W.numpy())
    expected = (
        grad.numpy() / np.abs(W.numpy()).max() if transform == "none" else grad.numpy() * (1 - t**2) / np.abs(t).max()
    )
    assert x.grad is not None
    assert_close(x.grad, torch.tensor(expected), "formula")


def test_an_unknown_transform_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither 'none' nor 'tanh'"):
        build_quantizer("uniform(transform=sigmoid)", 2)
