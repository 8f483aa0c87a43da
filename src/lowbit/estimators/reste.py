"""ReSTE: a power function that sharpens during training."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators._base import ESTIMATORS, AbstractEstimator
from lowbit.quantizers import Grid


@ESTIMATORS.register("reste")
@dataclass(frozen=True)
class ReSTE(AbstractEstimator):
    """The derivative of sign(z)·|z|^(1/o), bounded near zero, with the power o raised from 1 to `o_end` during
    training.

    Forward: codes. Backward, z in units of x:
    `∂L/∂z = ∂L/∂codes · (1/o)·|z|^((1−o)/o)` for m < |z| ≤ t, `· m^(1/o)/m` for |z| ≤ m, 0 beyond t.
    At o = 1 this is the clipped estimator with threshold t; as o grows the surrogate approaches the sign.

    Args:
        o_end: the power at the end of training (3 in the paper).
        t: the outer threshold (1.5).
        m: the inner threshold, below which the secant through 0 and m replaces the unbounded derivative (0.1).
        o: the power now; `at` sets it to 1 + (o_end − 1)·progress.

    Source: [wu2023reste]; the linear map from progress to o is our reading of it.
    """

    o_end: float = 3.0
    t: float = 1.5
    m: float = 0.1
    o: float = 1.0

    linear_in_grad = True
    elementwise = True
    annealed = True
    binary_only = True
    roles = frozenset({"weights", "activations"})
    needs = frozenset({"z"})

    def __post_init__(self) -> None:
        if not (self.o >= 1 and self.o_end >= 1):
            raise ConfigError(f"o={self.o}, o_end={self.o_end} of estimator 'reste' must be at least 1")
        if not 0 < self.m < self.t:
            raise ConfigError(
                f"m={self.m}, t={self.t} of estimator 'reste' must satisfy 0 < m < t (0.1 and 1.5 in the paper)"
            )

    @classmethod
    def examples(cls) -> list[AbstractEstimator]:
        """The start, the middle and the end of training."""
        return [cls(), cls(o=2.0), cls(o=3.0)]

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        """`grad` times the bounded derivative of the power function."""
        size = z.abs()
        slope = size.clamp(self.m, self.t).pow((1 - self.o) / self.o) / self.o
        slope = slope.where(size > self.m, slope.new_full((), self.m ** (1 / self.o) / self.m))
        return grad * slope.where(size <= self.t, slope.new_zeros(()))

    def at(self, progress: float) -> ReSTE:
        """The same rule with o = 1 + (o_end − 1)·progress."""
        return replace(self, o=1 + (self.o_end - 1) * progress)
