"""approxsign: Liu et al. 2018, Bi-Real Net."""

from __future__ import annotations

import numpy as np
import torch

from lowbit.estimators import build_estimator
from lowbit.quantizers import build_quantizer
from straddling import extremes, gradient, noise
from tolerances import assert_close

APPROXSIGN, SIGN = build_estimator("approxsign"), build_quantizer("sign", 1)


def surrogate(x: float) -> float:
    """The paper's piecewise quadratic, whose derivative the estimator is."""
    if x < -1:
        return -1.0
    if x < 0:
        return 2 * x + x * x
    return 2 * x - x * x if x < 1 else 1.0


@np.vectorize
def reference(z: float, grad: float) -> float:
    if -1 <= z < 0:
        return grad * (2 + 2 * z)
    if 0 <= z < 1:
        return grad * (2 - 2 * z)
    return 0.0


def test_against_the_formula() -> None:
    z = extremes(SIGN.grid, torch.float64)
    grad = noise(z.numel(), dtype=z.dtype)
    assert_close(gradient(APPROXSIGN, SIGN, z, grad), torch.tensor(reference(z.numpy(), grad.numpy())), "formula")


def test_it_is_the_slope_of_the_surrogate() -> None:
    z = torch.linspace(-1.45, 1.45, 58, dtype=torch.float64)  # none within a step of a kink
    step = 1e-6
    slopes = [(surrogate(x + step) - surrogate(x - step)) / (2 * step) for x in z.tolist()]
    assert_close(
        gradient(APPROXSIGN, SIGN, z, torch.ones_like(z)), torch.tensor(slopes, dtype=z.dtype), "finite difference"
    )


def test_the_papers_points() -> None:
    z = torch.tensor([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0])
    assert gradient(APPROXSIGN, SIGN, z, torch.ones(8)).tolist() == [0, 0, 1, 2, 2, 1, 0, 0]
