"""The convex function of the LNE manifold, its mirror map, and the divergence it induces."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lowbit.geometry._base import AbstractMetric
from lowbit.geometry.tau import check_tau


def convex_function(xi: Tensor, tau: float | Tensor) -> Tensor:
    """`Φ(ξ) = Σ_i τ⁻² log cosh(τ ξ_i)`, [chen2024ricci], Eq. 14. Shapes: (..., n) → (...).

    Args:
        xi: ξ.
        tau: τ > 0, a number or a tensor of shape (..., 1).
    """
    return (_log_cosh(xi * tau) / tau**2).sum(-1)


def mirror_map(xi: Tensor, tau: float | Tensor) -> Tensor:
    """`∇Φ(ξ) = tanh(τξ)/τ`: from the primal space to the dual one, the cube (−1/τ, 1/τ)ⁿ."""
    return torch.tanh(xi * tau) / tau


def inverse_mirror_map(dual: Tensor, tau: float | Tensor) -> Tensor:
    """`(∇Φ)⁻¹(η) = artanh(τη)/τ`; NaN outside the cube, where no ξ belongs to η."""
    return torch.atanh(dual * tau) / tau


def bregman_divergence(function: Callable[[Tensor], Tensor], p: Tensor, q: Tensor) -> Tensor:
    """`F(p) − F(q) − ∇F(q)·(p − q)` for a differentiable convex F, its gradient by autograd. Shapes: (..., n) → (...).

    Subtracts values of F: where p and q agree to k digits, 2k digits of the result are lost. `lne_divergence` does not.

    Args:
        function: F, (..., n) → (...).
        p, q: the points; F is expanded at q.
    """
    slope = torch.func.grad(lambda x: function(x).sum())(q)
    return function(p) - function(q) - (slope * (p - q)).sum(-1)


def lne_divergence(p: Tensor, q: Tensor, tau: float | Tensor) -> Tensor:
    """`D[p:q] = Σ_i τ⁻² log(cosh τp_i / cosh τq_i) − τ⁻¹ (p_i − q_i) tanh τq_i`, [chen2024ricci], Eq. 15.

    The Bregman divergence of Φ. Computed from `x = τ(p − q)`, `y = τq` as the cumulant of a centred coin, `log(a
    e^{2bx} + b e^{−2ax})` with `a = σ(2y)`, `b = σ(−2y)`: in `log1p(a E(2bx) + b E(−2ax))`, `E(z) = e^z − 1 − z`, all
    terms are positive, so that it keeps its digits as p nears q, and it does not overflow for large τ. (The form is
    ours.)

    Args:
        p, q: ξ' and ξ, shapes (..., n).
        tau: τ > 0, a number or a tensor of shape (..., 1).

    Returns:
        Shape (...); at least 0, and 0 exactly where p = q.

    Raises: ConfigError for a number τ that is not positive.
    """
    check_tau(tau)
    x, y = (p - q) * tau, q * tau
    up, down = torch.sigmoid(2 * y), torch.sigmoid(-2 * y)
    near = x.abs() < 20
    # Beyond, e^z may overflow; the branch that is not taken is kept finite, or its gradient would be NaN.
    small = x.where(near, 0)
    close = torch.log1p(up * _exp_remainder(2 * down * small) + down * _exp_remainder(-2 * up * small))
    far = torch.logaddexp(F.logsigmoid(2 * y) + 2 * down * x, F.logsigmoid(-2 * y) - 2 * up * x)
    return (close.where(near, far) / tau**2).sum(-1)


def taylor(metric: AbstractMetric, step: Tensor) -> Tensor:
    """`½ stepᵀ g step`, the second-order term of a divergence with the metric g. Shapes: (..., n) → (...).

    What Thm 10 of [chen2024ricci] comes to, for `D[ξ + dξ : ξ]` of Eq. 15:

    - with the Hessian of Φ, `diag(1 − tanh²(τξ))` (`HessianMetric`), this is the Taylor expansion: the difference is of
      third order in dξ, `−⅓ τ Σ_i u_i (1 − u_i²) dξ_i³` at first;
    - with δ − u uᵀ of Eq. 16 (`LNEMetric`) it is not: the difference is of second order. The two quadratic forms are
      `½ (Σ_i u_i² dξ_i² − (u·dξ)²)` apart, which vanishes for a dξ along one axis, and on average over dξ of
      independent signs, but not for others.

    Both statements are ours; tests/geometry/test_divergence.py confirms them.
    """
    return (step * metric.matvec(step)).sum(-1) / 2


def _log_cosh(x: Tensor) -> Tensor:
    """log cosh x without overflow for large |x| and without cancellation for small."""
    size = x.abs()
    small = size < 1
    near = torch.sinh(size.where(small, 0)).square().log1p() / 2
    return near.where(small, size + torch.log1p(torch.exp(-2 * size)) - math.log(2))


def _exp_remainder(z: Tensor) -> Tensor:
    """e^z − 1 − z, by its series where the subtraction would cancel."""
    small = z.abs() < 0.5
    x = z.where(small, 0)
    series = torch.zeros_like(x)
    for k in range(15, 1, -1):
        series = (series + 1 / math.factorial(k)) * x
    return torch.where(small, series * x, torch.expm1(z) - z)
