"""What the checker finds on a problem, and how sure it can be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

VANISHES = 0.1
"""A coarse gradient below this share of its usual size (root mean square over random weights of the same norms) counts
as vanished. The estimators of the admissible class have 0 up to rounding there, the identity 0.4."""

Curve: TypeAlias = tuple[list[int], list[float]]
"""Iterations, and the loss at each."""


@dataclass(frozen=True)
class Outcome:
    """How descent fared on one problem."""

    problem: str
    applies: bool
    runs: int
    converged: int
    confidence: tuple[float, float]
    """Clopper–Pearson interval, 95 %, for the share of seeds that converge."""
    text: str
    """What was found, or why the problem does not apply."""
    curves: tuple[Curve, ...] = field(default=(), repr=False)
    """Of each run."""

    @property
    def always(self) -> bool:
        """Whether nothing speaks against convergence: all runs converged, or there were none."""
        return self.converged == self.runs

    @property
    def mostly(self) -> bool:
        """Whether at least half of the runs converged, or there were none."""
        return 2 * self.converged >= self.runs


@dataclass(frozen=True)
class AtMinimum:
    """What the coarse gradient does at a known minimum of the population loss."""

    relative_norm: float
    """Its norm as a share of its usual size."""
    left: int
    """Of the descents that started beside the minimum, how many the loss rose in."""
    runs: int
    rise: float
    """The largest loss met in them as a multiple of the minimum's; 1 where they stayed."""
    text: str
    curves: tuple[Curve, ...] = field(default=(), repr=False)
    """Of each descent, the loss as a multiple of the minimum's."""

    @property
    def vanishes(self) -> bool:
        """Whether the minimum is a point of rest for descent."""
        return self.relative_norm < VANISHES and not self.left


def plain(found: Outcome | AtMinimum) -> dict[str, Any]:
    """What was found without the curves, for JSON."""
    return {key: value for key, value in vars(found).items() if key != "curves"}


def finite(value: Any) -> Any:
    """The same with None for every number that is not finite: JSON has no word for those."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def confidence(successes: int, runs: int, level: float = 0.95) -> tuple[float, float]:
    """The Clopper–Pearson interval for a share: exact, two-sided."""
    from scipy.stats import beta  # a tenth of a second, which `lowbit.convert` need not wait for

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, successes, runs - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, runs - successes)) if successes < runs else 1.0
    return low, high


def said(interval: tuple[float, float]) -> str:
    """A confidence interval in words."""
    low, high = math.floor(100 * interval[0]), math.ceil(100 * interval[1])
    share = f"at least {low} %" if high == 100 else f"at most {high} %" if low == 0 else f"{low} to {high} %"
    return f"so that {share} of all seeds do (95 % confidence)"
