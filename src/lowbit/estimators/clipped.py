"""The clipped straight-through estimator."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators._base import ESTIMATORS, AbstractEstimator
from lowbit.quantizers import Grid


@ESTIMATORS.register("clipped")
@dataclass(frozen=True)
class Clipped(AbstractEstimator):
    """The gradient passes inside the range of the codes and stops outside.

    Forward: codes. Backward: `∂L/∂z = ∂L/∂codes · 1[c·low ≤ z ≤ c·high]`.
    For the sign quantizer z is x itself and the range is |x| ≤ c, the hardtanh of [courbariaux2016binarized]. For
    integers in step units it is the indicator of LSQ and PACT, `−Qn ≤ x/s ≤ Qp` ([esser2020lsq], Sec. 2;
    [choi2018pact]), and on activations after a ReLU the clipped-ReLU estimator of [yin2019understanding].

    Args:
        c: the threshold as a multiple of the range of the codes.

    Source: [courbariaux2016binarized], Sec. 1.3.
    """

    c: float = 1.0

    linear_in_grad = True
    elementwise = True
    annealed = False
    binary_only = False
    roles = frozenset({"weights", "activations"})
    needs = frozenset({"z"})

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise ConfigError(f"c={self.c} of estimator 'clipped' must be positive (1 in the paper)")

    @classmethod
    def examples(cls) -> list[AbstractEstimator]:
        """The paper's threshold and a wider one."""
        return [cls(), cls(c=1.5)]

    def window(self, grid: Grid) -> tuple[float, float]:
        """[c·low, c·high]."""
        return self.c * grid.low, self.c * grid.high

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        """`grad · 1[c·low ≤ z ≤ c·high]`."""
        inside = (z >= self.c * grid.low) & (z <= self.c * grid.high)
        return grad * inside
