"""τ of the LNE metric by rule: how strongly the metric may bend on each block of weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowbit._errors import ConfigError

Tau = float | Literal["auto", "dominance"]

LARGE = 512  # weights in a block, from which on a single one hardly bends ‖tanh(τw)‖² away from τ²‖w‖²


@dataclass(frozen=True)
class TauRule:
    """Weights → τ, one for each block. The paper asks for "adjusting τ" per layer and gives no rule: these are ours.

    Args:
        tau: "auto", the largest τ with ‖u‖² ≤ ρ (g is positive definite); "dominance", the largest τ at which g is
            diagonally dominant by `margin` (Def. 17, what the weak inverse asks for; far smaller); or a number, τ.
        rho: ρ of "auto", and the cap of `admissible`; between 0 and 1.
        margin: of "dominance": the smallest `1 − u_i² − |u_i| Σ_{j≠i} |u_j|` allowed; 0 ≤ margin < 1.

    Raises: ConfigError for values outside these.
    """

    tau: Tau = "auto"
    rho: float = 0.9
    margin: float = 0.1

    def __post_init__(self) -> None:
        named = self.tau in ("auto", "dominance")
        if not named and (isinstance(self.tau, str) or not 0 < self.tau < math.inf):
            raise ConfigError(f"tau={self.tau!r} must be a positive number or auto or dominance")
        if not 0 < self.rho < 1:
            raise ConfigError(f"rho={self.rho} must lie between 0 and 1: g is positive definite only there")
        if not 0 <= self.margin < 1:
            raise ConfigError(f"margin={self.margin} must be at least 0 and below 1: 1 is reached by τ = 0 alone")

    def __call__(self, weights: Tensor) -> Tensor:
        """τ by the rule. Shapes: (..., n) → (..., 1)."""
        if self.tau == "auto":
            return largest_tau(weights, self.rho)
        if self.tau == "dominance":
            return largest_dominant_tau(weights, self.margin)
        return weights.new_full((*weights.shape[:-1], 1), float(self.tau))

    def admissible(self, weights: Tensor) -> Tensor:
        """τ by the rule, lowered on the blocks where ‖u‖² would exceed ρ. Shapes: (..., n) → (..., 1).

        Beyond ‖u‖² = 1 the exact inverse turns the gradient around along u, and at 1 it is infinite.
        """
        tau = self(weights)
        return tau if self.tau == "auto" else tau.minimum(largest_tau(weights, self.rho))

    def diagonal(self, weights: Tensor) -> Tensor:
        """τ for the metric diag(1 − u²), by the same bounds: every u_i² at most ρ, for "dominance" also 1 − margin.

        `τ = artanh(√ρ)/max|w|`, a number as it is; 1 for all-zero weights. Shapes: (..., n) → (..., 1).
        """
        if not isinstance(self.tau, str):
            return self(weights)
        size = weights.abs().amax(-1, keepdim=True)
        tau = math.atanh(math.sqrt(self.rho if self.tau == "auto" else min(self.rho, 1 - self.margin))) / size
        return tau.where(size > 0, 1.0)


def check_tau(tau: float | Tensor) -> None:
    """Raises: ConfigError for a number that is not positive and finite; a tensor's values are not read."""
    if not isinstance(tau, Tensor) and not 0 < tau < math.inf:
        raise ConfigError(f"tau={tau!r} must be a positive number: at 0 the metric is flat, and it grows with τ")


def largest_tau(weights: Tensor, rho: float, iterations: int | None = None) -> Tensor:
    """The largest τ with ‖tanh(τ·w)‖² ≤ ρ, approached from below. Shapes: (..., n) → (..., 1).

    For all-zero weights any τ does; it is then 1. Source: ours, not from a paper ([chen2024ricci] leaves τ open).

    Args:
        weights: w.
        rho: ρ, positive; g is positive definite while it is below 1.
        iterations: how many steps to take; None takes 6, or 2 for blocks of 512 weights or more, where τ is then within
            5·10⁻⁸ for normal weights and within a percent for their cubes.
    """
    return _largest(weights, rho, lambda u: u.square().sum(-1, keepdim=True), iterations)


def largest_dominant_tau(weights: Tensor, margin: float, iterations: int | None = None) -> Tensor:
    """The largest τ at which δ − u uᵀ is diagonally dominant by `margin`, from below. Shapes: (..., n) → (..., 1).

    `min_i (1 − u_i² − |u_i| Σ_{j≠i} |u_j|) = 1 − max|u| · Σ|u| ≥ margin` (Def. 17). For all-zero weights τ is 1.
    Source: ours, not from a paper.

    Args:
        weights: w.
        margin: below 1.
        iterations: as for `largest_tau`.
    """

    def reach(u: Tensor) -> Tensor:
        size = u.abs()
        return size.amax(-1, keepdim=True) * size.sum(-1, keepdim=True)

    return _largest(weights, 1 - margin, reach, iterations)


def _largest(weights: Tensor, bound: float, reach: Callable[[Tensor], Tensor], iterations: int | None) -> Tensor:
    """The largest τ with `reach(tanh(τ·w)) ≤ bound`, where `reach` is monotone in |u| and of degree two.

    Starts from τ = √(bound/reach(w)), which satisfies the bound since |tanh x| ≤ |x|, and repeats τ ←
    τ·√(bound/reach(u)). Because tanh(c·x) ≤ c·tanh(x) for c ≥ 1, no step oversteps the bound.
    """
    start = reach(weights)
    zero = start == 0
    tau = (bound / start.where(~zero, torch.ones_like(start))).sqrt()
    if iterations is None:
        iterations = 2 if weights.shape[-1] >= LARGE else 6
    for _ in range(iterations):
        reached = reach(torch.tanh(weights * tau))
        tau = tau * (bound / reached.where(~zero, reached.new_full((), bound))).sqrt()
    # Rounding may overstep the bound by a few units in the last place.
    return (tau * (1 - 8 * torch.finfo(tau.dtype).eps)).where(~zero, torch.ones_like(tau))


def require_positive_definite(weights: Tensor, tau: float | Tensor, name: str) -> float:
    """The smallest 1 − ‖u‖² over the blocks, u = tanh(τ·w), if it is positive. Reads a value back from the device.

    Args:
        weights: w, shape (..., n).
        tau: τ, a number or a tensor of shape (..., 1).
        name: the layer's, for the message.

    Raises: ConfigError where ‖u‖² ≥ 1, naming the layer, ‖u‖² and the largest τ admissible on every block.
    """
    norm = float(torch.tanh(weights * tau).square().sum(-1).max())
    if norm < 1:
        return 1 - norm
    given = f"{float(tau):.4g}" if isinstance(tau, float | int) or tau.numel() == 1 else "given per block"
    blocks = "" if weights.numel() == weights.shape[-1] else f" on one of its {weights[..., 0].numel()} blocks"
    raise ConfigError(
        f"layer '{name}': at τ = {given} the metric is not positive definite, ‖u‖² = {norm:.4g}{blocks} where it must "
        f"be below 1; the largest admissible τ is {largest_admissible_tau(weights):.4g} there"
    )


def largest_admissible_tau(*weights: Tensor) -> float:
    """The largest τ at which δ − u uᵀ is positive definite on every block of every tensor (..., n), to four digits.

    Rounded down: a bound that is printed must itself be admissible. Reads values back from the device.
    """
    tau = min(float(largest_tau(w, 1.0, 60).min()) for w in weights)
    unit = 10.0 ** (math.floor(math.log10(tau)) - 3)
    return math.floor(tau / unit) * unit
