"""The plain straight-through estimator."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lowbit.estimators._base import ESTIMATORS, AbstractEstimator
from lowbit.quantizers import Grid


@ESTIMATORS.register("identity")
@dataclass(frozen=True)
class Identity(AbstractEstimator):
    """The gradient passes unchanged (plain straight-through estimator).

    Forward: codes. Backward: `∂L/∂z = ∂L/∂codes`.
    On activations it is known to be unsafe ([yin2019understanding], Sec. 4): prefer `clipped` there.

    Source: [bengio2013estimating], Sec. 4.
    """

    linear_in_grad = True
    elementwise = True
    annealed = False
    binary_only = False
    roles = frozenset({"weights", "activations"})
    needs = frozenset()

    @classmethod
    def examples(cls) -> list[AbstractEstimator]:
        """The one instance there is."""
        return [cls()]

    def window(self, grid: Grid) -> tuple[float, float]:
        """Everywhere."""
        return -math.inf, math.inf

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        """`grad`."""
        return grad
