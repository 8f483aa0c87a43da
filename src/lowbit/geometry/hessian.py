"""The true Hessian of the LNE manifold's convex function, as an operator: a diagonal."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from lowbit.geometry._base import AbstractMetric
from lowbit.geometry.tau import check_tau


class HessianMetric(AbstractMetric):
    """g = diag(1 − tanh²(τ·w)), the Hessian of Φ(w) = Σ_i τ⁻² log cosh(τ w_i) ([chen2024ricci], Eq. 14).

    The Bregman metric proper. [chen2024ricci], Eq. 16 puts δ − u uᵀ in its place (`LNEMetric`): the two share only
    their diagonal. This one is positive definite and diagonally dominant at every τ. Everything is O(n).

    Source: ours, not from a paper (the Hessian of Eq. 14, taken as it is).

    Args:
        weights: w, shape (..., n).
        tau: τ > 0, a number or a tensor of shape (..., 1).

    Raises: ConfigError for a number τ that is not positive and finite.
    """

    def __init__(self, weights: Tensor, tau: float | Tensor) -> None:
        check_tau(tau)
        # 1 − tanh²x = 4e/(1 + e)², e = exp(−2|x|): without the cancellation that makes it 0 from |x| = 9 in float32.
        self._exponent = -2 * (weights * tau).abs()
        decay = self._exponent.exp()
        self.diagonal = 4 * decay / (1 + decay).square()

    @property
    def shape(self) -> torch.Size:
        """(..., n, n), the shape of the matrix that is never formed."""
        return torch.Size((*self.diagonal.shape, self.diagonal.shape[-1]))

    def matvec(self, v: Tensor) -> Tensor:
        """`g v = (1 − tanh²(τw)) v`. Shapes: (..., n) → (..., n)."""
        return self.diagonal * v

    def solve(self, v: Tensor) -> Tensor:
        """`g⁻¹ v = cosh²(τw) v`. Shapes: (..., n) → (..., n)."""
        return v / self.diagonal

    def logdet(self) -> Tensor:
        """`log det g = −2 Σ_i log cosh(τ w_i)`, shape (...)."""
        return (self._exponent + math.log(4) - 2 * self._exponent.exp().log1p()).sum(-1)

    def eigenvalue_bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest and largest eigenvalue, shapes (...): those of the diagonal."""
        return self.diagonal.amin(-1), self.diagonal.amax(-1)

    def dominance_margin(self) -> Tensor:
        """The smallest eigenvalue, shape (...): there is nothing beside the diagonal (Def. 17)."""
        return self.diagonal.amin(-1)

    def relative_bounds(self, reference: Self) -> tuple[Tensor, Tensor]:
        """Bounds on the eigenvalues of `reference⁻¹ g`: the ratios of the diagonals, and 1."""
        ratio = self.diagonal / reference.diagonal
        return ratio.amin(-1).clamp_max(1), ratio.amax(-1).clamp_min(1)

    def as_matrix(self) -> Tensor:
        """The dense matrix, shape (..., n, n). For tests: O(n²) memory."""
        return torch.diag_embed(self.diagonal)


def diagonal_difference_norm_squared(coefficients: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """‖Σ_t c_t (diag(a_t²) − diag(b_t²))‖² (Frobenius), exact also where a and b nearly agree.

    `Σ_i (Σ_t c_t (a_ti − b_ti)(a_ti + b_ti))²`: N of [chen2024ricci], Eq. 35, for metrics diag(1 − u²), where the 1
    cancel. The twin of `outer_difference_norm_squared`.

    Args:
        coefficients: c, shape (k,).
        first, second: a and b, shape (k, ..., n).

    Returns:
        Shape (...), one for each block. Source: ours, not from a paper.
    """
    difference = (first - second) * (first + second)
    with torch.autocast(first.device.type, enabled=False):  # a user may call `step` under autocast
        return torch.tensordot(coefficients, difference, dims=1).square().sum(-1)
