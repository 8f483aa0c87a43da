"""What every metric operator offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor


class AbstractMetric(ABC):
    """A symmetric matrix g, or a batch of them, that acts on vectors without being formed.

    Leading dimensions are a batch of independent metrics. Nothing here synchronises with a device or checks values: a
    training step asks for neither. `require_positive_definite` does, when asked.
    """

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(..., n, n), the shape of the matrix that is never formed."""

    @abstractmethod
    def matvec(self, v: Tensor) -> Tensor:
        """`g v`. Shapes: (..., n) → (..., n)."""

    @abstractmethod
    def solve(self, v: Tensor) -> Tensor:
        """`g⁻¹ v`. Shapes: (..., n) → (..., n)."""

    @abstractmethod
    def logdet(self) -> Tensor:
        """`log det g`, shape (...); NaN where the determinant is negative."""

    @abstractmethod
    def eigenvalue_bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest eigenvalue, shapes (...)."""

    @abstractmethod
    def dominance_margin(self) -> Tensor:
        """`min_i (g_ii − Σ_{j≠i} |g_ij|)`, shape (...): positive where g is diagonally dominant (Def. 17)."""

    @abstractmethod
    def relative_bounds(self, reference: Self) -> tuple[Tensor, Tensor]:
        """Bounds on the eigenvalues of `reference⁻¹ g`, shapes (...), as tight as Def. 21 needs them.

        The smaller is at most 1 and the larger at least 1; otherwise they are attained.
        """

    @abstractmethod
    def as_matrix(self) -> Tensor:
        """The dense matrix, shape (..., n, n). For tests and small blocks: O(n²) memory."""

    def positive_definite_margin(self) -> Tensor:
        """The smallest eigenvalue, shape (...): positive exactly where g is a metric."""
        return self.eigenvalue_bounds()[0]

    def epsilon_closeness(self, reference: Self) -> Tensor:
        """The smallest ε with `(1 + ε)⁻¹ g₀ ≤ g ≤ (1 + ε) g₀` ([chen2024ricci], Def. 21), shape (...).

        Infinite where either is not positive definite.
        """
        return epsilon_from_bounds(*self.relative_bounds(reference))


def epsilon_from_bounds(low: Tensor, high: Tensor) -> Tensor:
    """ε of Def. 21 from the smallest and largest eigenvalue of g₀⁻¹ g; infinite unless both are positive."""
    # A NaN, where g₀ is not positive definite, is not positive either.
    return torch.where(low > 0, torch.maximum(high - 1, 1 / low - 1), torch.inf)
