"""The estimator of a ReLU that bends from the start; of the coarse-ReLU family, see `relu`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowbit.estimators._base import ESTIMATORS, AbstractEstimator
from lowbit.quantizers import Grid


@ESTIMATORS.register("reverse-exponential")
@dataclass(frozen=True)
class ReverseExponential(AbstractEstimator):
    """The derivative of q·(1 − e^(−z/q)): a ReLU that bends towards the largest code from the start.

    Forward: codes. Backward: `∂L/∂z = ∂L/∂codes · e^(−z/q) · 1[z > 0]`.
    Of the admissible class on every bounded range (0, M]: δ = e^(−M/q), δ̄ = 1.

    Source: [long2021coarse], Sec. 2.
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

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        """`grad · e^(−z/q) · 1[z > 0]`."""
        return grad * (-z.clamp_min(0) / grid.high).exp() * (z > 0)
