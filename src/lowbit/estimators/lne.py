"""The LNE natural gradient: the whole tensor's metric acts on its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators._base import ESTIMATORS, AbstractEstimator
from lowbit.geometry import Inverse, LNEMetric, largest_tau
from lowbit.quantizers import Grid


@ESTIMATORS.register("lne")
@dataclass(frozen=True)
class LNE(AbstractEstimator):
    """The natural gradient on the linearly nearly Euclidean manifold.

    Forward: codes. Backward: `∂L/∂z = g⁻¹ ∂L/∂codes`, `g = δ − u uᵀ`, `u = tanh(τ·ξ)`, where ξ is z measured from the
    point that stands for zero. With the exact inverse, `g⁻¹v = v + u (u·v)/(1 − ‖u‖²)`: O(n). Here g is a metric over
    the whole tensor, or over blocks of it.

    Args:
        tau: τ; "auto" (ours, the paper leaves it open) takes the largest τ with ‖u‖² ≤ ρ on each block. With the exact
            inverse a number is lowered to that on blocks where it would exceed it; the weak inverse takes it as it is.
        rho: ρ, between 0 and 1.
        inverse: "exact" (Sherman–Morrison, ours) or "weak" (Eq. 29, the paper's).
        block: "layer", "channel" (first dimension), or the size of consecutive groups.

    Source: [chen2024ricci], Eq. 5, 26, 27 and 29.
    """

    tau: float | Literal["auto"] = "auto"
    rho: float = 0.9
    inverse: Inverse = "exact"
    block: int | Literal["layer", "channel"] = "layer"

    linear_in_grad = True
    elementwise = False
    annealed = False
    binary_only = False
    roles = frozenset({"weights"})
    needs = frozenset({"z"})

    def __post_init__(self) -> None:
        if not 0 < self.rho < 1:
            raise ConfigError(
                f"rho={self.rho} of estimator 'lne' must lie between 0 and 1: g is positive definite only there"
            )
        if self.tau != "auto" and not (isinstance(self.tau, int | float) and self.tau > 0):
            raise ConfigError(f"tau={self.tau!r} of estimator 'lne' must be a positive number or auto")
        if self.inverse not in ("exact", "weak"):
            raise ConfigError(f"inverse={self.inverse!r} of estimator 'lne' must be exact or weak")
        if self.block not in ("layer", "channel") and not (isinstance(self.block, int) and self.block > 0):
            raise ConfigError(
                f"block={self.block!r} of estimator 'lne' must be layer, channel or a positive group size"
            )

    @classmethod
    def examples(cls) -> list[AbstractEstimator]:
        """Both inverses, each kind of block, automatic and fixed τ."""
        return [cls(), cls(inverse="weak", rho=0.5), cls(block="channel"), cls(block=3), cls(tau=0.01)]

    def metric(self, z: Tensor, grid: Grid) -> LNEMetric:
        """The metric at z, one for each block."""
        # Outside the grid tanh is as good as flat; the clamp keeps an infinite z out of the norm.
        span = float(grid.high - grid.low)
        xi = self._blocks((z - grid.zero).clamp(-span * 1e3, span * 1e3))
        if self.tau == "auto":
            return LNEMetric(xi, largest_tau(xi, self.rho), self.inverse)
        if self.inverse == "weak":
            return LNEMetric(xi, self.tau, self.inverse)
        # Beyond ‖u‖² = 1 the exact inverse turns the gradient around along u, and at 1 it is infinite.
        return LNEMetric(xi, largest_tau(xi, self.rho).clamp_max(self.tau), self.inverse)

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        """`g⁻¹ grad`."""
        solved = self.metric(z, grid).solve(self._blocks(grad))
        return solved.reshape(-1)[: grad.numel()].reshape(grad.shape)

    def _blocks(self, x: Tensor) -> Tensor:
        if self.block == "layer":
            return x.reshape(1, -1)
        if self.block == "channel":
            return x.reshape(x.shape[0] if x.ndim else 1, -1)
        # Zeros fill the last group: u = tanh(0) = 0 there, so that they change nothing.
        return torch.nn.functional.pad(x.reshape(-1), (0, -x.numel() % self.block)).reshape(-1, self.block)
