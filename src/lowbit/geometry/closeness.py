"""How near two matrices are, and how far one is from failing to be a metric: answers with the margin.

For matrices; the operators have methods of the same names, in O(n).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit.geometry._base import epsilon_from_bounds


def epsilon_closeness(g: Tensor, g0: Tensor) -> Tensor:
    """The smallest ε with `(1 + ε)⁻¹ g₀ ≤ g ≤ (1 + ε) g₀` as matrices, [chen2024ricci], Def. 21.

    `max(λ_max − 1, 1/λ_min − 1)` over the eigenvalues λ of `g₀⁻¹ g`. 0 when they are equal, infinite where either is
    not positive definite; symmetric in g and g₀. Shapes: (..., n, n) → (...).
    """
    factor, failed = torch.linalg.cholesky_ex(g0)
    whole = (failed == 0)[..., None]
    factor = factor.where(whole[..., None], torch.eye(g0.shape[-1], dtype=g0.dtype, device=g0.device))
    half = torch.linalg.solve_triangular(factor, g, upper=False)
    eigenvalues = torch.linalg.eigvalsh(torch.linalg.solve_triangular(factor, half.mT, upper=False))
    eigenvalues = eigenvalues.where(whole, torch.nan)
    return epsilon_from_bounds(eigenvalues[..., 0], eigenvalues[..., -1])


def positive_definite_margin(g: Tensor) -> Tensor:
    """The smallest eigenvalue of a symmetric matrix: positive exactly where g is a metric. (..., n, n) → (...)."""
    return torch.linalg.eigvalsh(g)[..., 0]


def dominance_margin(g: Tensor) -> Tensor:
    """`min_i (g_ii − Σ_{j≠i} |g_ij|)`: positive where g is diagonally dominant ([chen2024ricci], Def. 17).

    Shapes: (..., n, n) → (...). The diagonal is taken with its sign: a negative entry there makes the margin negative.
    """
    diagonal = g.diagonal(dim1=-2, dim2=-1)
    return (diagonal + diagonal.abs() - g.abs().sum(-1)).amin(-1)
