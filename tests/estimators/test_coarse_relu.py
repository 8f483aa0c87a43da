"""relu, log-tailed, reverse-exponential: Yin et al. 2019; Long, Yin, Xin 2021."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lowbit.estimators import build_estimator
from lowbit.quantizers import build_quantizer
from straddling import extremes, gradient, noise
from tolerances import assert_close


def surrogate(name: str, z: float, q: int) -> float:
    """g' by the table of the paper."""
    if z <= 0:
        return 0.0
    if name == "relu":
        return 1.0
    if name == "log-tailed":
        return 1.0 if z <= q else 1 / (z - q + 1)
    return math.exp(-z / q)


def antiderivative(name: str, z: float, q: int) -> float:
    """g, whose derivative the estimator is."""
    if z <= 0:
        return 0.0
    if name == "relu":
        return z
    if name == "log-tailed":
        return z if z <= q else q + math.log(z - q + 1)
    return q * (1 - math.exp(-z / q))


NAMES = ("relu", "log-tailed", "reverse-exponential")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantizer", ["staircase", "unsigned"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_against_the_formula(name: str, quantizer: str, bits: int) -> None:
    step = build_quantizer(quantizer, bits)
    z = extremes(step.grid, torch.float64)
    grad = noise(z.numel(), dtype=z.dtype)
    slopes = np.vectorize(lambda v: surrogate(name, v, step.grid.high))(z.numpy())
    assert_close(gradient(build_estimator(name), step, z, grad), grad * torch.tensor(slopes), "formula")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_slope_of_the_function_it_is_named_after(name: str) -> None:
    step, h = build_quantizer("staircase", 2), 1e-6
    z = torch.linspace(-1.03, 9.11, 101, dtype=torch.float64)
    slopes = [(antiderivative(name, v + h, 3) - antiderivative(name, v - h, 3)) / (2 * h) for v in z.tolist()]
    expected = torch.tensor(slopes, dtype=z.dtype)
    assert_close(gradient(build_estimator(name), step, z, torch.ones_like(z)), expected, "finite difference")


def test_zero_is_outside() -> None:
    z = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 3.0, 4.0, 6.0])
    step, ones = build_quantizer("staircase", 2), torch.ones(7)
    assert gradient(build_estimator("relu"), step, z, ones).tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert gradient(build_estimator("log-tailed"), step, z, ones).tolist() == [0, 0, 0, 1, 1, 0.5, 0.25]
    assert gradient(build_estimator("reverse-exponential"), step, z, ones)[:3].tolist() == [0, 0, 0]
