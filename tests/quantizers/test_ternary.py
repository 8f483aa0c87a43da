"""ternary: Li et al. 2016, ternary weight networks."""

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


def reference(row: np.ndarray, threshold: float) -> tuple[np.ndarray, float, float]:
    """Codes, scale and Δ of one block, by the paper's formulas."""
    delta = threshold * np.mean(np.abs(row))
    codes = np.array([1.0 if w > delta else -1.0 if w < -delta else 0.0 for w in row])
    beyond = [abs(w) for w in row if abs(w) > delta]
    return codes, float(np.mean(beyond)), float(delta)


@pytest.mark.parametrize(("granularity", "rows"), [("tensor", (1, 24)), ("channel", (3, 8)), ("group:4", (6, 4))])
@pytest.mark.parametrize("threshold", [0.7, 0.3])
def test_values_and_gradient_against_numpy(granularity: str, rows: tuple[int, int], threshold: float) -> None:
    quantizer = build_quantizer(f"ternary(granularity={granularity}, threshold={threshold})", 2)
    x = W.clone().requires_grad_()
    y = FakeQuantize(quantizer, build_estimator("identity"))(x)
    y.backward(torch.ones_like(y))
    parts = [reference(row, threshold) for row in W.numpy().reshape(rows)]
    values = np.stack([codes * scale for codes, scale, _ in parts]).reshape(W.shape)
    slope = np.stack([np.full(rows[1], scale / (2 * delta)) for _, scale, delta in parts]).reshape(W.shape)
    assert_close(y.detach(), torch.tensor(values), "formula")
    assert x.grad is not None
    assert_close(x.grad, torch.tensor(slope), "formula")


def test_the_scale_is_the_best_for_its_codes() -> None:
    quantizer = build_quantizer("ternary", 2)
    y, codes = quantizer(W), quantizer.codes(W)
    alpha = y.abs().max()
    best = (y - W).square().sum()
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (factor * alpha * codes - W).square().sum() > best


def test_an_element_on_the_threshold_becomes_zero() -> None:
    x = torch.tensor([0.75, -0.75, 2.0, -0.5])  # mean|x| = 1
    quantizer = build_quantizer("ternary(threshold=0.75)", 2)
    assert quantizer.codes(x).tolist() == [0, 0, 1, 0]
    above = torch.nextafter(x, 2 * x)
    assert quantizer.codes(torch.tensor([float(above[0]), -0.75, 2.0, -0.5])).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.7])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="is not between 0 and 1"):
        build_quantizer(f"ternary(threshold={threshold})", 2)
