"""Mirror descent: steps taken in the dual space of a convex function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.geometry.divergence import inverse_mirror_map, mirror_map


class AbstractMirror(ABC):
    """A set and a strictly convex function F on it: `to_dual = ∇F`, `to_primal` its inverse, then F's projection.

    Shapes: (..., n) → (..., n), each row a point of its own.
    """

    @abstractmethod
    def to_dual(self, x: Tensor) -> Tensor:
        """`∇F(x)`."""

    @abstractmethod
    def to_primal(self, y: Tensor) -> Tensor:
        """The point of the set that is nearest in F's Bregman divergence to `(∇F)⁻¹(y)`."""


@dataclass(frozen=True)
class LNEMirror(AbstractMirror):
    """Φ of [chen2024ricci], Eq. 14 and 18, on the box |ξ_i| ≤ radius: `∇Φ = tanh(τξ)/τ`.

    The dual space is the cube (−1/τ, 1/τ)ⁿ, which a step may leave: Eq. 18 has then no solution. On a box it has one. F
    being a sum over coordinates, its projection cuts each of them off. (The box is ours.)

    Args:
        tau: τ > 0.
        radius: of the box; Φ is strongly convex there, with modulus `1 − tanh²(τ·radius)`.
    """

    tau: float
    radius: float

    def __post_init__(self) -> None:
        _positive("LNEMirror", tau=self.tau, radius=self.radius)

    def to_dual(self, x: Tensor) -> Tensor:
        """`tanh(τξ)/τ`."""
        return mirror_map(x, self.tau)

    def to_primal(self, y: Tensor) -> Tensor:
        """`artanh(τη)/τ`, cut off at the box."""
        # Cut in the dual space: artanh of what is outside the cube does not exist.
        edge = float(torch.tanh(torch.tensor(self.tau * self.radius, dtype=torch.float64))) / self.tau
        return inverse_mirror_map(y.clamp(-edge, edge), self.tau).clamp(-self.radius, self.radius)


@dataclass(frozen=True)
class TanhMirror(AbstractMirror):
    """The cube (−1, 1)ⁿ with `w = tanh(τy)`: MD-tanh of [ajanthan2021mirror], whose β is τ.

    F is the convex conjugate of Φ but for a scale: here the tanh leads from the dual space to the primal one. Strongly
    convex with modulus 1/τ.

    Args:
        tau: τ > 0; as it grows, w nears ±1.
    """

    tau: float

    def __post_init__(self) -> None:
        _positive("TanhMirror", tau=self.tau)

    def to_dual(self, x: Tensor) -> Tensor:
        """`artanh(w)/τ`, w = ±1 taken as the nearest number inside."""
        inside = 1 - torch.finfo(x.dtype).eps
        return torch.atanh(x.clamp(-inside, inside)) / self.tau

    def to_primal(self, y: Tensor) -> Tensor:
        """`tanh(τy)`."""
        return torch.tanh(self.tau * y)


@dataclass(frozen=True)
class EntropicMirror(AbstractMirror):
    """The probability simplex with the negative entropy `Σ x log x`: exponentiated gradients ([beck2003mirror])."""

    def to_dual(self, x: Tensor) -> Tensor:
        """`log x`, but for a constant, which the projection removes."""
        return x.log()

    def to_primal(self, y: Tensor) -> Tensor:
        """`softmax(y)`."""
        return torch.softmax(y, -1)


@dataclass(frozen=True)
class EuclideanSimplexMirror(AbstractMirror):
    """The probability simplex with `½‖x‖²`: projected gradients."""

    def to_dual(self, x: Tensor) -> Tensor:
        """`x`."""
        return x

    def to_primal(self, y: Tensor) -> Tensor:
        """`project_simplex(y)`."""
        return project_simplex(y)


def project_simplex(x: Tensor) -> Tensor:
    """The nearest point of the probability simplex: `max(x − θ, 0)` with θ such that it sums to 1.

    Exact, by sorting, in O(n log n) ([duchi2008projections], Fig. 1). Shapes: (..., n) → (..., n).
    """
    # The sum of the k largest less k θ is 1 for the right k, the largest at which the k-th itself exceeds θ.
    largest = x.sort(-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    thresholds = (largest.cumsum(-1) - 1) / count
    kept = (largest > thresholds).sum(-1, keepdim=True)
    return (x - thresholds.gather(-1, kept - 1)).clamp_min(0)


@dataclass(frozen=True)
class Iterate:
    """Where mirror descent stands after `step` steps.

    Attributes:
        step: how many were taken, from 1.
        point: x after them.
        average: the mean, weighted by step sizes, of the points at which gradients were taken: what Thm 12 is about.
    """

    step: int
    point: Tensor
    average: Tensor


def mirror_descent(
    mirror: AbstractMirror,
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    step_size: float | Callable[[int], float],
    steps: int,
) -> Iterator[Iterate]:
    """Mirror descent: `∇F(x_{t+1}) = ∇F(x_t) − η_t ∂f(x_t)`, projected; [chen2024ricci], Eq. 18.

    For a convex f, F of modulus σ and ‖∂f‖ ≤ G the average obeys `f(x̄_T) − f* ≤ (D[x*:x₁] + G²/(2σ) Σ η_t²) / Σ η_t`
    ([beck2003mirror], Thm 4.1): O(1/√T) with η ∝ 1/√T, Thm 12 of [chen2024ricci].

    Args:
        mirror: F and its set.
        gradient: a subgradient of f, (..., n) → (..., n).
        start: x₁, shape (..., n).
        step_size: η, or step number (from 1) → η.
        steps: T.
    """
    point, average, weight = start, torch.zeros_like(start), 0.0
    for step in range(1, steps + 1):
        eta = step_size(step) if callable(step_size) else step_size
        weight += eta
        average = average + (point - average) * (eta / weight)
        point = mirror.to_primal(mirror.to_dual(point) - eta * gradient(point))
        yield Iterate(step, point, average)


def _positive(owner: str, **options: float) -> None:
    for name, value in options.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name}={value} of {owner} must be a positive number")
