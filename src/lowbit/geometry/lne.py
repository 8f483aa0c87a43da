"""The linearly nearly Euclidean (LNE) metric, as an operator: never as a matrix."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Inverse = Literal["exact", "weak"]


class LNEMetric:
    """g = δ − u uᵀ with u = tanh(τ·w), [chen2024ricci], Eq. 16 and 26.

    The eigenvalues are 1 (n − 1 times) and 1 − ‖u‖²; g is positive definite exactly when ‖u‖² < 1. Everything is O(n)
    in time and memory. Leading dimensions are a batch of independent metrics.

    Symbols: ξ or w of the paper: `weights`; τ: `tau`.

    Args:
        weights: w, shape (..., n).
        tau: τ > 0, a number or a tensor of shape (..., 1).
        inverse: how `solve` inverts g. "exact": Sherman–Morrison, `v + u (u·v)/(1 − ‖u‖²)`. "weak": `v + u (u·v)` (Cor.
            19, Eq. 29), close to it while g is diagonally dominant.
    """

    def __init__(self, weights: Tensor, tau: float | Tensor, inverse: Inverse = "exact") -> None:
        self.u = torch.tanh(weights * tau)
        self.inverse = inverse

    @property
    def shape(self) -> torch.Size:
        """(..., n, n), the shape of the matrix that is never formed."""
        return torch.Size((*self.u.shape, self.u.shape[-1]))

    def norm_squared(self) -> Tensor:
        """‖u‖², shape (..., 1): g is positive definite while this is below 1."""
        return self.u.square().sum(-1, keepdim=True)

    def matvec(self, v: Tensor) -> Tensor:
        """`g v = v − u (u·v)`. Shapes: (..., n) → (..., n)."""
        return v - self.u * (self.u * v).sum(-1, keepdim=True)

    def solve(self, v: Tensor) -> Tensor:
        """`g⁻¹ v` by the chosen inverse. Shapes: (..., n) → (..., n)."""
        along = (self.u * v).sum(-1, keepdim=True)
        if self.inverse == "weak":
            return v + self.u * along
        return v + self.u * (along / (1 - self.norm_squared()))

    def logdet(self) -> Tensor:
        """`log det g = log(1 − ‖u‖²)`, shape (...); NaN where g is not positive definite."""
        return torch.log1p(-self.norm_squared()).squeeze(-1)

    def eigenvalue_bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest and largest eigenvalue, shapes (...): 1 − ‖u‖² and 1 (the former only, if n = 1)."""
        low = (1 - self.norm_squared()).squeeze(-1)
        return low, low if self.u.shape[-1] == 1 else torch.ones_like(low)

    def dominance_margin(self) -> Tensor:
        """`min_i (1 − u_i² − |u_i| Σ_{j≠i} |u_j|)`, shape (...): positive where g is diagonally dominant (Def. 17)."""
        size = self.u.abs()
        return (1 - size * size.sum(-1, keepdim=True)).amin(-1)

    def as_matrix(self) -> Tensor:
        """The dense matrix, shape (..., n, n). For tests: O(n²) memory."""
        eye = torch.eye(self.u.shape[-1], dtype=self.u.dtype, device=self.u.device)
        return eye - self.u.unsqueeze(-1) * self.u.unsqueeze(-2)


def largest_tau(weights: Tensor, rho: float, iterations: int = 6) -> Tensor:
    """The largest τ with ‖tanh(τ·w)‖² ≤ ρ, approached from below. Shapes: (..., n) → (..., 1).

    Starts from τ = √ρ/‖w‖, which satisfies the bound since |tanh x| ≤ |x|, and repeats τ ← τ·√(ρ/‖u‖²). Because
    tanh(c·x) ≤ c·tanh(x) for c ≥ 1, no step oversteps the bound. For all-zero weights any τ does; it is then 1.

    Source: ours, not from a paper ([chen2024ricci] leaves τ open).

    Args:
        weights: w.
        rho: ρ, between 0 and 1.
        iterations: how many steps to take; for blocks of hundreds of weights one is already within a percent.
    """
    norm = weights.square().sum(-1, keepdim=True).sqrt()
    zero = norm == 0
    tau = rho**0.5 / norm.where(~zero, torch.ones_like(norm))
    for _ in range(iterations):
        reached = torch.tanh(weights * tau).square().sum(-1, keepdim=True)
        tau = tau * (rho / reached.where(~zero, reached.new_full((), rho))).sqrt()
    # Rounding may overstep ρ by a few units in the last place.
    return (tau * (1 - 8 * torch.finfo(tau.dtype).eps)).where(~zero, torch.ones_like(tau))


def outer_difference_norm_squared(coefficients: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """‖Σ_t c_t (a_t a_tᵀ − b_t b_tᵀ)‖² (Frobenius) without forming the matrix, exact also where a and b nearly agree.

    With s = a + b and d = a − b each term is ½(s dᵀ + d sᵀ), so that the square is
    `½ Σ_tr c_t c_r ((s_t·s_r)(d_t·d_r) + (s_t·d_r)(d_t·s_r))`. In a step of training d is about 10⁻⁴ of s, and summing
    products of the u themselves would cancel all digits of float32.

    N of [chen2024ricci], Eq. 35, is of this form: every metric there is δ − u uᵀ, and the δ cancel.

    Args:
        coefficients: c, shape (k,).
        first, second: a and b, shape (k, n).

    Returns:
        Shape (). Source: ours, not from a paper.
    """
    s, d = first + second, first - second
    with torch.autocast(s.device.type, enabled=False):  # a user may call `step` under autocast
        mixed = s @ d.T
        terms = (s @ s.T) * (d @ d.T) + mixed * mixed.T
    return (torch.outer(coefficients, coefficients) * terms).sum() / 2
