"""lne: Chen et al. 2024, against dense linear algebra in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators import build_estimator
from lowbit.quantizers import AbstractQuantizer, Grid, build_quantizer
from straddling import gradient, noise
from tolerances import assert_close

SIGN, UNIFORM = build_quantizer("sign", 1), build_quantizer("uniform", 2)


def dense_tau(xi: np.ndarray, rho: float) -> float:
    """The τ with ‖tanh(τξ)‖² = ρ, by bisection; n < ρ cannot be reached by fewer than one element."""
    low, high = 0.0, 1e6 / np.abs(xi).max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.sum(np.tanh(middle * xi) ** 2) <= rho else (low, middle)
    return low


def dense_solve(xi: np.ndarray, grad: np.ndarray, tau: float, inverse: str) -> np.ndarray:
    u = np.tanh(tau * xi)
    if inverse == "weak":
        return (np.eye(u.size) + np.outer(u, u)) @ grad
    return np.linalg.solve(np.eye(u.size) - np.outer(u, u), grad)


def blocks_of(x: Tensor, block: str) -> list[np.ndarray]:
    if block == "layer":
        return [x.flatten().numpy()]
    if block == "channel":
        return [row.flatten().numpy() for row in x]
    flat, size = x.flatten().numpy(), int(block)
    return [flat[k : k + size] for k in range(0, flat.size, size)]


@pytest.mark.parametrize("quantizer", [SIGN, UNIFORM], ids=["sign", "uniform"])
@pytest.mark.parametrize("block", ["layer", "channel", "5", "12", "40"])
@pytest.mark.parametrize("inverse", ["exact", "weak"])
def test_fixed_tau_against_a_dense_solve(quantizer: AbstractQuantizer, block: str, inverse: str) -> None:
    z = noise(3, 2, 4, seed=1, dtype=torch.float64) + quantizer.grid.zero
    grad = noise(3, 2, 4, seed=2, dtype=torch.float64)
    tau = 0.12
    estimator = build_estimator(f"lne(tau={tau}, inverse={inverse}, block={block})")
    pieces = zip(blocks_of(z - quantizer.grid.zero, block), blocks_of(grad, block), strict=True)
    expected = np.concatenate([dense_solve(xi, g, tau, inverse) for xi, g in pieces]).reshape(z.shape)
    assert_close(gradient(estimator, quantizer, z, grad), torch.tensor(expected), "dense")


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9])
def test_automatic_tau_against_a_dense_solve(rho: float) -> None:
    z, grad = noise(60, seed=1, dtype=torch.float64), noise(60, seed=2, dtype=torch.float64)
    expected = dense_solve(z.numpy(), grad.numpy(), dense_tau(z.numpy(), rho), "exact")
    result = gradient(build_estimator(f"lne(rho={rho})"), SIGN, z, grad)
    torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-3, atol=1e-4)  # τ is approached, not solved for


def test_along_u_the_gradient_grows_by_the_promised_factor_and_across_it_stays() -> None:
    z = noise(200, seed=3, dtype=torch.float64)
    estimator = build_estimator("lne(rho=0.9)")
    u = estimator.metric(z, SIGN.grid).u.flatten()  # type: ignore[attr-defined]
    across = noise(200, seed=4, dtype=torch.float64)
    across -= u * (across @ u) / (u @ u)
    torch.testing.assert_close(gradient(estimator, SIGN, z, u), u / (1 - 0.9), rtol=1e-3, atol=1e-6)
    assert_close(gradient(estimator, SIGN, z, across), across, "dense")


def test_xi_is_measured_from_the_code_of_zero() -> None:
    """Moving z to where uniform's codes are, and back by its zero, changes nothing."""
    z, grad = noise(24, seed=1, dtype=torch.float64), noise(24, seed=2, dtype=torch.float64)
    estimator = build_estimator("lne(tau=0.1)")
    assert UNIFORM.grid.zero == 1.5
    shifted = estimator.vjp(z + 1.5, z, grad, UNIFORM.grid)
    assert_close(shifted, estimator.vjp(z, z, grad, Grid(-2, 1)), "dense")


@pytest.mark.parametrize("block", ["layer", "channel", "3"])
def test_a_fixed_tau_never_leaves_the_region_where_g_is_a_metric(block: str) -> None:
    """τ = 50 would make ‖u‖² = n: without a bound the exact inverse would turn the gradient around."""
    z, grad = noise(4, 6, seed=1, dtype=torch.float64), noise(4, 6, seed=2, dtype=torch.float64)
    for tau in (0.5, 50.0, 1e6):
        estimator = build_estimator(f"lne(tau={tau}, block={block})")
        result = gradient(estimator, SIGN, z, grad)
        assert result.isfinite().all()
        for piece, g in zip(blocks_of(result, block), blocks_of(grad, block), strict=True):
            assert piece @ g >= g @ g * (1 - 1e-9)  # g⁻¹ is positive definite, with no eigenvalue below 1
        assert float(estimator.metric(z, SIGN.grid).norm_squared().max()) <= 0.9 + 1e-12  # type: ignore[attr-defined]


@pytest.mark.parametrize("block", ["layer", "channel", "5"])
@pytest.mark.parametrize("inverse", ["exact", "weak"])
def test_tau_by_dominance_leaves_every_block_dominant_by_the_margin(inverse: str, block: str) -> None:
    z = noise(8, 20, seed=1, dtype=torch.float64)
    estimator = build_estimator(f"lne(tau=dominance, margin=0.3, inverse={inverse}, block={block})")
    margins = estimator.metric(z, SIGN.grid).dominance_margin()  # type: ignore[attr-defined]
    assert margins.min() >= 0.3
    assert margins.median() < 0.31


def test_small_tau_is_the_identity_estimator() -> None:
    z, grad = noise(24, seed=1), noise(24, seed=2)
    assert_close(gradient(build_estimator("lne(tau=1e-6)"), SIGN, z, grad), grad, "formula")


def test_weak_and_exact_differ_by_the_factor_one_minus_the_norm() -> None:
    z, grad = noise(50, seed=1, dtype=torch.float64), noise(50, seed=2, dtype=torch.float64)
    exact, weak = (build_estimator(f"lne(rho=0.5, inverse={kind})") for kind in ("exact", "weak"))
    norm = float(exact.metric(z, SIGN.grid).norm_squared())  # type: ignore[attr-defined]
    moved_exact, moved_weak = (gradient(e, SIGN, z, grad) - grad for e in (exact, weak))
    assert math.isclose(norm, 0.5, rel_tol=1e-3)
    assert_close(moved_weak, moved_exact * (1 - norm), "dense")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("rho=1.0", "between 0 and 1"),
        ("rho=0.0", "between 0 and 1"),
        ("tau=0.0", "positive number or auto"),
        ("tau=large", "estimator 'lne': tau='large' must be a positive number or auto or dominance"),
        ("tau=inf", "positive number or auto"),
        ("margin=1.0", "margin=1.0 must be at least 0 and below 1"),
        ("inverse=strong", "exact or weak"),
        ("block=row", "layer, channel or a positive group size"),
        ("block=0", "layer, channel or a positive group size"),
    ],
)
def test_impossible_options_are_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_estimator(f"lne({options})")
