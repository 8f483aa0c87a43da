"""sign: Chen et al. 2024 and XNOR-Net."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowbit.estimators import build_estimator
from lowbit.layers import FakeQuantize
from lowbit.quantizers import build_quantizer
from straddling import noise
from tolerances import assert_close

W = noise(3, 2, 4, dtype=torch.float64)


def test_zero_of_either_sign_is_plus_one() -> None:
    x = torch.tensor([-2.0, -1e-45, -0.0, 0.0, 1e-45, 3.0])
    assert build_quantizer("sign", 1)(x).tolist() == [-1, -1, 1, 1, 1, 1]


@pytest.mark.parametrize(("granularity", "rows"), [("tensor", (1, 24)), ("channel", (3, 8)), ("group:4", (6, 4))])
@pytest.mark.parametrize("policy", ["mean-abs", "max-abs"])
def test_data_scales_against_numpy(granularity: str, rows: tuple[int, int], policy: str) -> None:
    blocks = W.numpy().reshape(rows)
    reduce = np.mean if policy == "mean-abs" else np.max
    scale = np.array([[reduce(np.abs(row))] for row in blocks])
    expected = (scale * np.where(blocks >= 0, 1.0, -1.0)).reshape(W.shape)
    result = build_quantizer(f"sign(scale={policy}, granularity={granularity})", 1)(W)
    assert_close(result, torch.tensor(expected), "formula")


def test_the_mean_is_the_best_scale_there_is() -> None:
    """XNOR-Net's optimality: no other α brings α·sign(w) nearer to w."""
    best = (build_quantizer("sign(scale=mean-abs)", 1)(W) - W).square().sum()
    signs = build_quantizer("sign", 1)(W)
    alpha = W.abs().mean()
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (factor * alpha * signs - W).square().sum() > best


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_of_bwn_and_of_xnor(detach: bool) -> None:
    """BWN: g·α·1[|x| ≤ 1]; with the scale differentiated: plus sign(x)/n · Σ g·sign(x)."""
    x = W.clone().requires_grad_()
    grad = noise(3, 2, 4, seed=1, dtype=torch.float64)
    FakeQuantize(build_quantizer(f"sign(scale=mean-abs, detach={detach})", 1), build_estimator("clipped"))(x).backward(
        grad
    )
    w, g = W.numpy(), grad.numpy()
    sign = np.where(w >= 0, 1.0, -1.0)
    expected = g * np.mean(np.abs(w)) * (np.abs(w) <= 1)
    if not detach:
        expected = expected + sign / w.size * np.sum(g * sign)
    assert x.grad is not None
    assert_close(x.grad, torch.tensor(expected), "formula")
