"""Φ, its mirror map, the LNE divergence, and to what the second-order term of that converges (Thm 10)."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowbit.geometry import (
    HessianMetric,
    LNEMetric,
    bregman_divergence,
    convex_function,
    inverse_mirror_map,
    lne_divergence,
    mirror_map,
    taylor,
)
from straddling import noise
from tolerances import assert_close

sizes = st.integers(1, 20)
seeds = st.integers(0, 1000)
taus = st.floats(1e-2, 5.0)


def points(*shape: int, seed: int = 0) -> Tensor:
    return noise(*shape, seed=seed, dtype=torch.float64)


def exact_divergence(p: float, q: float, tau: float) -> float:
    """Eq. 15 as it stands, to 60 digits."""
    getcontext().prec = 60
    p_, q_, t = Decimal(p), Decimal(q), Decimal(tau)

    def cosh(x: Decimal) -> Decimal:
        return (x.exp() + (-x).exp()) / 2

    slope = ((t * q_).exp() - (-t * q_).exp()) / 2 / cosh(t * q_)
    return float((cosh(t * p_) / cosh(t * q_)).ln() / t**2 - (p_ - q_) * slope / t)


@given(n=sizes, seed=seeds, tau=taus)
def test_phi_and_its_gradient(n: int, seed: int, tau: float) -> None:
    xi = points(n, seed=seed).requires_grad_()
    value = convex_function(xi, tau)
    assert_close(value, (torch.cosh(tau * xi).log() / tau**2).sum(), "dense")
    (slope,) = torch.autograd.grad(value, xi)
    assert_close(slope, mirror_map(xi.detach(), tau), "formula")
    if tau < 2:
        assert_close(inverse_mirror_map(slope, tau), xi.detach(), "dense")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_phi_at_the_ends_of_the_range(dtype: torch.dtype) -> None:
    """Without overflow for large τξ; ½ξ² − τ²ξ⁴/12 to every digit for small, where cosh is 1 to eight of them."""
    far = torch.tensor([1e4, -1e4], dtype=dtype)
    assert_close(convex_function(far, 1.0), torch.tensor(2e4 - 2 * math.log(2), dtype=dtype), "formula")
    near = torch.tensor([1e-3], dtype=dtype)
    assert_close(convex_function(near, 0.1) * 1e6, torch.tensor(0.5 - 1e-8 / 12, dtype=dtype), "formula")
    x = torch.tensor([0.0, 1e-6, 0.999, 1.001, 500.0], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(convex_function(x, 1.0), x)
    assert_close(slope, torch.tanh(x.detach()), "formula")


@given(n=sizes, batch=st.lists(st.integers(1, 3), max_size=2), seed=seeds, tau=taus)
def test_the_lne_divergence_is_the_bregman_divergence_of_phi(n: int, batch: list[int], seed: int, tau: float) -> None:
    p, q = points(*batch, n, seed=seed), points(*batch, n, seed=seed + 1)
    found = lne_divergence(p, q, tau)
    assert found.shape == torch.Size(batch)
    assert_close(found, bregman_divergence(lambda x: convex_function(x, tau), p, q), "dense")


def test_other_bregman_divergences() -> None:
    p, q = torch.softmax(points(6), -1), torch.softmax(points(6, seed=1), -1)
    half_square = bregman_divergence(lambda x: x.square().sum(-1) / 2, p, q)
    assert_close(half_square, (p - q).square().sum() / 2, "dense")
    kullback_leibler = bregman_divergence(lambda x: (x * x.log()).sum(-1), p, q)
    assert_close(kullback_leibler, (p * (p / q).log()).sum(), "dense")


@given(q=st.floats(-30, 30), step=st.floats(-60, 60), tau=st.floats(0.01, 3.0))
def test_divergence_against_sixty_digits(q: float, step: float, tau: float) -> None:
    p = q + step
    found = lne_divergence(torch.tensor([p], dtype=torch.float64), torch.tensor([q], dtype=torch.float64), tau)
    expected = exact_divergence(p, q, tau)
    assert math.isclose(float(found), expected, rel_tol=1e-9, abs_tol=1e-13 / tau**2)


@pytest.mark.parametrize("step", [1e-2, 1e-5, 1e-8])
@pytest.mark.parametrize("q", [0.0, 0.3, -5.0])
def test_divergence_keeps_its_digits_as_the_points_meet(q: float, step: float) -> None:
    p = q + step
    found = lne_divergence(torch.tensor([p], dtype=torch.float64), torch.tensor([q], dtype=torch.float64), 0.7)
    assert math.isclose(float(found), exact_divergence(p, q, 0.7), rel_tol=1e-12)


@given(n=sizes, seed=seeds, tau=taus)
def test_divergence_is_zero_exactly_at_its_point_and_positive_elsewhere(n: int, seed: int, tau: float) -> None:
    p, q = points(n, seed=seed), points(n, seed=seed + 1)
    assert lne_divergence(q, q, tau) == 0
    assert lne_divergence(p, q, tau) > 0
    assert lne_divergence(100 * p, 100 * q, tau).isfinite()


def test_gradients_of_the_divergence() -> None:
    """∂D/∂p = ∇Φ(p) − ∇Φ(q), ∂D/∂q = ∇²Φ(q) (q − p); also far out, where a branch not taken would give NaN."""
    p = torch.tensor([0.3, -2.0, 700.0, 1.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.3001, 1.0, -700.0, -30.0], dtype=torch.float64, requires_grad=True)
    with_p, with_q = torch.autograd.grad(lne_divergence(p, q, 1.3), [p, q])
    p, q = p.detach(), q.detach()
    assert_close(with_p, mirror_map(p, 1.3) - mirror_map(q, 1.3), "dense")
    assert_close(with_q, HessianMetric(q, 1.3).matvec(q - p), "dense")


def slope(errors: list[float], lengths: list[float]) -> float:
    """d log error / d log length between the ends."""
    return math.log(errors[0] / errors[-1]) / math.log(lengths[0] / lengths[-1])


@given(n=st.integers(2, 20), seed=seeds, tau=st.floats(0.2, 2.0))
def test_thm_10_the_expansion_is_of_third_order_with_the_hessian_and_of_second_with_eq_16(
    n: int, seed: int, tau: float
) -> None:
    xi, step = points(n, seed=seed), points(n, seed=seed + 1)
    u = torch.tanh(tau * xi)
    lengths = [1e-2, 1e-3, 1e-4]
    hessian, paper = ([], [])  # type: tuple[list[float], list[float]]
    for length in lengths:
        true = lne_divergence(xi + length * step, xi, tau)
        hessian.append(float(true - taylor(HessianMetric(xi, tau), length * step)))
        paper.append(float(true - taylor(LNEMetric(xi, tau), length * step)))
    third = float(-tau / 3 * (u * (1 - u.square()) * step**3).sum())
    fourth = tau**2 * float(step.abs().pow(4).sum())  # bounds the next term, |Φ''''| ≤ 2τ²
    for length, error in zip(lengths, hessian, strict=True):
        assert abs(error - length**3 * third) <= length**4 * fourth + 1e-15
    apart = float((u @ step).square() - (u * step).square().sum()) / 2
    assert abs(paper[-1] / lengths[-1] ** 2 - apart) <= 1e-4 * abs(third) + 1e-6 + 1e-8 * fourth
    if abs(apart) > 0.1 and abs(third) < 10:
        assert abs(slope([abs(x) for x in paper], lengths) - 2) < 0.3


def test_thm_10_order_of_convergence_and_distance_of_eq_16_in_one_case() -> None:
    xi, tau = points(8), 0.7
    step = xi.sign() * points(8, seed=1).abs()  # along u, where the outer product acts
    lengths = [10.0**-k for k in range(1, 5)]
    errors: dict[type, list[float]] = {HessianMetric: [], LNEMetric: []}
    for length in lengths:
        true = lne_divergence(xi + length * step, xi, tau)
        for kind in (HessianMetric, LNEMetric):
            errors[kind].append(float((true - taylor(kind(xi, tau), length * step)).abs() / true))
    # Relative to D, which is of second order itself.
    assert abs(slope(errors[HessianMetric], lengths) - 1) < 0.1
    assert min(errors[LNEMetric]) > 0.5


def test_the_two_quadratic_forms_agree_along_axes_and_on_average_over_signs() -> None:
    xi, tau = points(5), 0.7
    hessian, paper = HessianMetric(xi, tau), LNEMetric(xi, tau)
    axes = torch.eye(5, dtype=torch.float64)
    for k in range(5):
        assert_close(taylor(paper, axes[k]), taylor(hessian, axes[k]), "dense")
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 5)
    steps = signs * points(5, seed=1)
    values = [torch.stack([taylor(metric, step) for step in steps]) for metric in (hessian, paper)]
    assert_close(values[0].mean(), values[1].mean(), "dense")
    assert (values[0] - values[1]).abs().max() > 0.05
