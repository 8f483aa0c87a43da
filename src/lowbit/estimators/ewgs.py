"""EWGS: the gradient scaled by where z lies within its step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators._base import ESTIMATORS, AbstractEstimator
from lowbit.quantizers import Grid


@ESTIMATORS.register("ewgs")
@dataclass(frozen=True)
class EWGS(AbstractEstimator):
    """Element-wise gradient scaling: larger where the step moves z away from its code, smaller where it moves towards
    it.

    Forward: codes. Backward: `∂L/∂z = g·(1 + δ·sign(g)·(z − codes)) · 1[low ≤ z ≤ high]`, g = ∂L/∂codes. Not linear in
    g. z and codes are in step units here; the paper normalises the whole range to [0, 1] or [−1, 1], so that its δ is
    ours times the number of steps in that range (δ·(high − low) for [0, 1]).

    Args:
        delta: δ ≥ 0, constant (the paper's alternative derives it from the Hessian's trace).

    Source: [lee2021ewgs], Sec. 3.
    """

    delta: float = 0.1

    linear_in_grad = False
    elementwise = True
    annealed = False
    binary_only = False
    roles = frozenset({"weights", "activations"})
    needs = frozenset({"z", "codes"})

    def __post_init__(self) -> None:
        if not self.delta >= 0:
            raise ConfigError(f"delta={self.delta} of estimator 'ewgs' must not be negative")

    @classmethod
    def examples(cls) -> list[AbstractEstimator]:
        """A mild and a strong scaling."""
        return [cls(), cls(delta=0.5)]

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        """`g·(1 + δ·sign(g)·(z − codes))` inside the range, 0 outside."""
        inside = (z >= grid.low) & (z <= grid.high)
        # Clamped first: z may be infinite outside the range, and inf · 0 is not 0.
        offset = z.clamp(grid.low, grid.high) - codes
        return (grad + self.delta * grad.abs() * offset) * inside
