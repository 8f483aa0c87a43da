"""The LNE natural gradient: the whole tensor's metric acts on its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators._base import ESTIMATORS, AbstractEstimator
from lowbit.geometry import Block, LNEMetric, Tau, TauRule, check_block, from_blocks, to_blocks
from lowbit.quantizers import Grid


@ESTIMATORS.register("lne")
@dataclass(frozen=True)
class LNE(AbstractEstimator):
    """The natural gradient on the linearly nearly Euclidean manifold.

    Forward: codes. Backward: `∂L/∂z = g⁻¹ ∂L/∂codes`, `g = δ − u uᵀ`, `u = tanh(τ·ξ)`, where ξ is z measured from the
    point that stands for zero. With the exact inverse, `g⁻¹v = v + u (u·v)/(1 − ‖u‖²)`: O(n). Here g is a metric over
    the whole tensor, or over blocks of it.

    Args:
        tau: τ of each block; the paper leaves it open. "auto" (ours): the largest with ‖u‖² ≤ ρ. "dominance" (ours):
            the largest at which g is diagonally dominant by `margin`. With the exact inverse τ is lowered to that of
            "auto" on blocks where it would exceed it; the weak inverse takes it as it is.
        rho: ρ, between 0 and 1.
        margin: of "dominance", from 0 to below 1.
        inverse: "exact" (Sherman–Morrison, ours) or "weak" (Eq. 29, the paper's).
        block: "layer", "channel" (first dimension), or the size of consecutive groups.

    Source: [chen2024ricci], Eq. 5, 26, 27 and 29.
    """

    tau: Tau = "auto"
    rho: float = 0.9
    margin: float = 0.1
    inverse: Literal["exact", "weak"] = "exact"
    block: Block = "layer"

    linear_in_grad = True
    elementwise = False
    annealed = False
    binary_only = False
    roles = frozenset({"weights"})
    needs = frozenset({"z"})

    def __post_init__(self) -> None:
        try:
            self._rule()
        except ConfigError as error:
            raise ConfigError(f"estimator 'lne': {error}") from None
        if self.inverse not in ("exact", "weak"):
            raise ConfigError(f"inverse={self.inverse!r} of estimator 'lne' must be exact or weak")
        check_block(self.block, "estimator 'lne'")

    @classmethod
    def examples(cls) -> list[AbstractEstimator]:
        """Both inverses, each kind of block, each rule for τ."""
        return [
            cls(),
            cls(inverse="weak", rho=0.5),
            cls(inverse="weak", tau="dominance"),
            cls(block="channel"),
            cls(block=3),
            cls(tau=0.01),
        ]

    def metric(self, z: Tensor, grid: Grid) -> LNEMetric:
        """The metric at z, one for each block."""
        # Outside the grid tanh is as good as flat; the clamp keeps an infinite z out of the norm.
        span = float(grid.high - grid.low)
        xi = to_blocks((z - grid.zero).clamp(-span * 1e3, span * 1e3), self.block)
        rule = self._rule()
        return LNEMetric(xi, rule(xi) if self.inverse == "weak" else rule.admissible(xi), self.inverse)

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        """`g⁻¹ grad`."""
        return from_blocks(self.metric(z, grid).solve(to_blocks(grad, self.block)), grad.shape)

    def _rule(self) -> TauRule:
        return TauRule(self.tau, self.rho, self.margin)
