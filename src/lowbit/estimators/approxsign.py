"""ApproxSign: the triangular surrogate of Bi-Real Net."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowbit.estimators._base import ESTIMATORS, AbstractEstimator
from lowbit.quantizers import Grid


@ESTIMATORS.register("approxsign")
@dataclass(frozen=True)
class ApproxSign(AbstractEstimator):
    """A triangle around the threshold: the derivative of a piecewise quadratic sign.

    Forward: codes. Backward: `∂L/∂z = ∂L/∂codes · (2 − 2|z|)·1[|z| ≤ 1]`, z in units of x.

    Source: [liu2018bireal], Sec. 3.3.
    """

    linear_in_grad = True
    elementwise = True
    annealed = False
    binary_only = True
    roles = frozenset({"weights", "activations"})
    needs = frozenset({"z"})

    @classmethod
    def examples(cls) -> list[AbstractEstimator]:
        """The one instance there is."""
        return [cls()]

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        """`grad · max(0, 2 − 2|z|)`."""
        return grad * (2 - 2 * z.abs()).clamp_min(0)
