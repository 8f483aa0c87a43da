"""dorefa: Zhou et al. 2016, the weight gradient through tanh and its maximum."""

from __future__ import annotations

import numpy as np
import torch

from lowbit.estimators import build_estimator
from lowbit.quantizers import build_quantizer
from straddling import gradient, noise, straddling
from tolerances import assert_close

DOREFA, SIGN = build_estimator("dorefa"), build_quantizer("sign", 1)


def reference(z: np.ndarray, grad: np.ndarray) -> np.ndarray:
    largest = max(abs(np.tanh(x)) for x in z.flat)
    return np.vectorize(lambda x, g: g * (1 - np.tanh(x) ** 2) / largest)(z, grad)


def test_against_the_formula() -> None:
    for seed, scale in enumerate((1e-3, 0.1, 1.0, 5.0)):
        z = scale * torch.cat([straddling(SIGN.grid, torch.float64), noise(20, seed=seed, dtype=torch.float64)])
        grad = noise(z.numel(), seed=seed, dtype=z.dtype)
        assert_close(gradient(DOREFA, SIGN, z, grad), torch.tensor(reference(z.numpy(), grad.numpy())), "formula")


def test_it_is_autograd_through_the_papers_transform_with_the_maximum_held() -> None:
    z = noise(3, 5, seed=4, dtype=torch.float64).requires_grad_()
    grad = noise(3, 5, seed=5, dtype=torch.float64)
    squashed = torch.tanh(z)
    (expected,) = torch.autograd.grad(squashed / squashed.abs().max().detach(), z, grad)
    assert_close(gradient(DOREFA, SIGN, z, grad), expected, "formula")


def test_small_weights_get_a_gradient_in_proportion_to_the_smallness_of_the_layer() -> None:
    z = torch.tensor([0.001, -0.001, 0.0005], dtype=torch.float64)
    assert_close(gradient(DOREFA, SIGN, z, torch.ones_like(z)), torch.full_like(z, 1000.0), "finite difference")


def test_the_largest_weight_moves_least() -> None:
    slope = gradient(DOREFA, SIGN, torch.tensor([0.0, 0.5, -1.0, 2.0]), torch.ones(4))
    assert (slope.diff() < 0).all()


def test_zeros_pass_the_gradient_times_a_finite_number() -> None:
    slope = gradient(DOREFA, SIGN, torch.zeros(3), torch.ones(3))
    assert slope.isfinite().all()
    assert (slope >= 1).all()
