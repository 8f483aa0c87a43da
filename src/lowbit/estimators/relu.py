"""The vanilla ReLU estimator.

z is in step units, as in all of the coarse-ReLU family: `relu`, `clipped`, `log-tailed`, `reverse-exponential`, and
`identity`, which the theory excludes ([long2021coarse]).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lowbit.estimators._base import ESTIMATORS, AbstractEstimator
from lowbit.quantizers import Grid

SMALLEST = 2.0**-149  # the smallest float32 above 0: a window that starts there leaves 0 out


@ESTIMATORS.register("relu")
@dataclass(frozen=True)
class ReLU(AbstractEstimator):
    """The derivative of the ReLU: the gradient passes where z is positive (vanilla ReLU estimator).

    Forward: codes. Backward: `∂L/∂z = ∂L/∂codes · 1[z > 0]`.
    Of the admissible class on any range, δ = δ̄ = 1. Where the staircase saturates the gradient still passes; deep
    networks of 2-bit activations suffer from that ([yin2019understanding], Sec. 4).

    Source: [yin2019understanding], Sec. 2; [long2021coarse], Sec. 2.
    """

    linear_in_grad = True
    elementwise = True
    annealed = False
    binary_only = False
    one_sided_only = True
    roles = frozenset({"activations"})
    needs = frozenset({"z"})

    @classmethod
    def examples(cls) -> list[AbstractEstimator]:
        """The one instance there is."""
        return [cls()]

    def window(self, grid: Grid) -> tuple[float, float]:
        """Everything above 0."""
        return SMALLEST, math.inf

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        """`grad · 1[z > 0]`."""
        return grad * (z > 0)
