"""The estimator of a ReLU with a logarithmic tail; of the coarse-ReLU family, see `relu`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowbit.estimators._base import ESTIMATORS, AbstractEstimator
from lowbit.quantizers import Grid


@ESTIMATORS.register("log-tailed")
@dataclass(frozen=True)
class LogTailed(AbstractEstimator):
    """The derivative of a ReLU that goes on as a logarithm where the staircase saturates.

    Forward: codes. Backward: `∂L/∂z = ∂L/∂codes · g'(z)`, `g' = 0` for z ≤ 0, 1 for 0 < z ≤ q, `1/(z − q + 1)` above.
    Of the admissible class on every bounded range (0, M]: δ = min(1, 1/(M − q + 1)), δ̄ = 1.

    Source: [cai2017hwgq], Sec. 3.2 (log-tailed ReLU); [long2021coarse], Sec. 2.
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
        """`grad · 1[z > 0] / max(1, z − q + 1)`."""
        return grad * (z > 0) / (z - (grid.high - 1)).clamp_min(1)
