"""Is an estimator in the class for which coarse gradient descent provably converges?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators import ESTIMATORS, AbstractEstimator, check_pair
from lowbit.quantizers import AbstractQuantizer

POINTS = 4001
"""The surrogate is looked at on so many evenly spaced points, and on both sides of every multiple of half a step."""

NARROWEST, WIDEST = 0.01, 1e5
"""The lengths of range, in steps, that can be looked at closely enough."""


@dataclass(frozen=True)
class Violation:
    """One condition that does not hold."""

    condition: str
    """"zero" (g' = 0 for z ≤ 0), "lower bound" (g' ≥ δ > 0 above) or "upper bound" (g' ≤ δ̄)."""
    where: float
    """The z at which it first fails, going away from 0."""
    text: str
    """The same in words."""


@dataclass(frozen=True, eq=False)
class Admissibility:
    """What `admissible` found out; z in step units throughout."""

    applies: bool
    """Whether the class is defined for the quantizer: its staircase has to rise from 0."""
    low: float
    high: float
    """The range looked at."""
    delta: float
    """δ, the least g' where it should be positive; 0 or less where the condition fails."""
    delta_bar: float
    """δ̄, the largest g' there."""
    violations: tuple[Violation, ...]
    """The conditions that do not hold; none where the class does not apply."""
    safe_up_to: float
    """The largest b ≤ high such that the lower bound holds on (0, b]; 0 where it holds nowhere."""
    z: Tensor
    slope: Tensor
    """The points looked at and the least and largest slope there, [2, points]."""

    @property
    def admissible(self) -> bool:
        """Whether the estimator is in the class on the range."""
        return self.applies and not self.violations


def default_range(quantizer: AbstractQuantizer) -> tuple[float, float]:
    """Half the grid beyond each of its ends: pre-activations of a network do leave the grid."""
    half = (quantizer.grid.high - quantizer.grid.low) / 2
    return quantizer.grid.low - half, quantizer.grid.high + half


def surrogate(estimator: AbstractEstimator, quantizer: AbstractQuantizer, z: Tensor) -> Tensor:
    """The least and the largest factor, [2, …], that the estimator puts on an incoming gradient of ±1 at z.

    They are one number g'(z) where the estimator is linear in the gradient.

    Raises: ConfigError for an estimator that is not elementwise, whose factor at z depends on the other elements, or
    that trains on relaxed values and so has none.
    """
    if not estimator.elementwise:
        name = ESTIMATORS.name_of(type(estimator), default=type(estimator).__name__)
        raise ConfigError(
            f"estimator '{name}' is not elementwise: it has no surrogate derivative g'(z), and the checker cannot "
            "judge it; compare it in training, for example with lowbit repel"
        )
    if type(estimator).relax is not AbstractEstimator.relax:
        name = ESTIMATORS.name_of(type(estimator), default=type(estimator).__name__)
        raise ConfigError(
            f"estimator '{name}' trains on relaxed values, not on the staircase: the checker cannot judge it"
        )
    codes, ones = quantizer.discretize(z), torch.ones_like(z)
    up = estimator.vjp(z, codes, ones, quantizer.grid)
    down = -estimator.vjp(z, codes, -ones, quantizer.grid)
    return torch.stack([torch.minimum(up, down), torch.maximum(up, down)])


def admissible(
    estimator: AbstractEstimator, quantizer: AbstractQuantizer, range: tuple[float, float] | None = None
) -> Admissibility:
    """Look whether an estimator is in the admissible class on a range of pre-activations.

    The class: `g'(z) = 0` for z ≤ 0, and `0 < δ ≤ g'(z) ≤ δ̄ < ∞` for z > 0. The bound from below is what the proof of
    convergence uses, on the bounded range of the pre-activations. The single point z = 0, which a pre-activation hits
    with probability 0, is not looked at: `clipped` passes the gradient there. The surrogate is looked at on 4,001
    points of the range and around every multiple of half a step in it, so that a narrower feature can be missed. Of an
    estimator that is not linear in the gradient, the factors on +1 and −1 both have to comply.

    Where the staircase does not rise from 0 the class is not defined; δ and δ̄ are then taken between the ends of the
    grid.

    Args:
        estimator: acts on activations.
        quantizer: the staircase.
        range: (a, b) in step units, a < b; by default half the grid beyond each of its ends.

    Raises: ConfigError for a range that is none, or a pair that does not fit.

    Source: the class of [long2021coarse] as in our notes on it; its theorem could not be compared word for word.
    """
    check_pair(estimator, quantizer, "activations")
    low, high = _checked(default_range(quantizer) if range is None else range, quantizer.grid.one_sided)
    z = _points(low, high)
    slope = surrogate(estimator, quantizer, z)
    least, largest = slope
    applies = quantizer.grid.one_sided
    inside = (z > 0) if applies else (z >= quantizer.grid.low) & (z <= quantizer.grid.high)
    if not inside.any():
        inside = torch.ones_like(inside)
    delta, delta_bar = float(least[inside].min()), float(largest[inside].max())
    violations = _violations(z, slope) if applies else ()
    lost = [v.where for v in violations if v.condition == "lower bound"]
    return Admissibility(applies, low, high, delta, delta_bar, violations, min([high, *lost]), z, slope)


def _violations(z: Tensor, slope: Tensor) -> tuple[Violation, ...]:
    least, largest = slope
    found = []
    below = (z < 0) & ((least != 0) | (largest != 0))
    if below.any():
        where = float(z[below].max())
        value = float(torch.where(least == 0, largest, least)[z == where][0])
        text = f"g' is not 0 below 0: g'({where:.4g}) = {value:.4g}"
        found.append(Violation("zero", where, text))
    small = (z > 0) & ~(least > 0)
    if small.any():
        where = float(z[small].min())
        value = float(least[z == where][0])
        text = f"g' has no lower bound δ > 0 on (0, {float(z.max()):.4g}]: g'({where:.4g}) = {value:.4g}"
        found.append(Violation("lower bound", where, text))
    large = (z > 0) & ~largest.isfinite()
    if large.any():
        where = float(z[large].min())
        found.append(Violation("upper bound", where, f"g' is not bounded: g'({where:.4g}) is not finite"))
    return tuple(found)


def _checked(range: tuple[float, float], one_sided: bool) -> tuple[float, float]:
    if len(range) != 2 or not all(math.isfinite(end) for end in range) or not range[0] < range[1]:
        raise ConfigError(
            f"range {tuple(range)} is not a bounded range of pre-activations: give a,b in step units with a < b, such "
            "as -4,12; the bounds δ and δ̄ exist on bounded ranges only"
        )
    low, high = float(range[0]), float(range[1])
    if not NARROWEST <= high - low <= WIDEST:
        raise ConfigError(
            f"range ({low:g}, {high:g}) has a length of {high - low:g} steps, expected {NARROWEST:g} to {WIDEST:g}"
        )
    if one_sided and high <= 0:
        raise ConfigError(
            f"range ({low:g}, {high:g}) ends at or below 0, where the staircase is flat: give a range with "
            "pre-activations above 0, such as -4,12"
        )
    return low, high


def _points(low: float, high: float) -> Tensor:
    even = torch.linspace(low, high, POINTS, dtype=torch.float64)
    halves = torch.arange(math.ceil(2 * low), math.floor(2 * high) + 1, dtype=torch.float64) / 2
    beside = 1e-9 * halves.abs().clamp_min(1)
    z = torch.cat([even, halves, halves - beside, halves + beside]).sort().values
    return z[(z >= low) & (z <= high) & (z.abs() > 1e-12)]
