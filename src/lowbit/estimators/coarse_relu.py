"""The coarse-ReLU family: derivatives of functions that look like the quantized ReLU from afar.

z is in step units throughout and q = 2^b − 1 is the largest code. `clipped` (g' = 1 up to q) and `identity` (g' = 1
everywhere, which the theory excludes) have files of their own.
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
