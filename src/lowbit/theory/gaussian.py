"""The one-hidden-layer network with Gaussian inputs, where the expected coarse gradient is known.

The input Z has m rows (patches) of d independent N(0, 1) numbers. One filter w is shared by the rows, the staircase s
acts on what it gives, and v weighs the rows: the student is `y = vᵀ s(Z w)`. A teacher of the same form, `y* = v*ᵀ s(Z
w*)`, is to be learnt, with the loss `½ (y − y*)²`. Its gradient with respect to w is zero almost everywhere; an
estimator e stands in for the derivative of s, and `g = Zᵀ (e(Z w) ∘ v)·(y − y*)` is the coarse gradient.

Here: the closed forms for `s(x) = 1[x > 0]`, and means over samples, for every staircase and estimator. The population
means for every staircase and estimator that is linear in the gradient are in `lowbit.theory.gaussian_population`.

Everything is in float64 and in step units: z = Z w, and s emits the integer codes of a quantizer. A scale on the codes
would be absorbed in v. Weights may have leading dimensions for runs: v (..., m) and w (..., d).

Map from the paper's symbols: σ → s, μ′ → e, θ(w, w*) → `Frame.theta`, h(v, v*) → `_h`, p and q → `_clipped_integrals`.

Source: [yin2019understanding], Sec. 2 and 3; staircases of more bits and other estimators are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators import ESTIMATORS, AbstractEstimator, check_pair
from lowbit.quantizers import AbstractQuantizer

BinaryRule = Literal["relu", "clipped", "identity"]

_GRAIN = 2.0**40  # thresholds and jumps are multiples of 1/_GRAIN: bisection finds them up to rounding
PARALLEL = 1e-12
"""Below this sine two filters count as parallel: the component across is then rounding error."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """What the student is to learn: `y* = v*ᵀ s(Z w*)`.

    For `s(x) = 1[x > 0]` and the sign only the direction of w* matters.

    Args:
        v: v*, shape (m,).
        w: w*, shape (d,), not zero.

    Raises:
        ConfigError: a shape is wrong, an entry is not finite, or w* is zero.
    """

    v: Tensor
    w: Tensor

    def __post_init__(self) -> None:
        for name, value in (("v", self.v), ("w", self.w)):
            if value.ndim != 1 or not len(value):
                raise ConfigError(f"the teacher's {name} has shape {tuple(value.shape)}, expected one dimension")
            if not bool(value.isfinite().all()):
                raise ConfigError(f"the teacher's {name} has entries that are not finite")
            object.__setattr__(self, name, value.detach().to("cpu", torch.float64))
        if not bool(self.w.any()):
            raise ConfigError("the teacher's filter w is zero, it has no direction to be learnt")


@dataclass(frozen=True, eq=False)
class Frame:
    """A filter in the plane that it spans with the teacher's: `ŵ* = cos θ·ŵ + sin θ·n̂`.

    Shapes: `norm`, `cos`, `sin` (...), `along` = ŵ and `across` = n̂ (..., d). Parallel filters have `sin` = 0 and
    n̂ = 0.
    """

    norm: Tensor
    along: Tensor
    across: Tensor
    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, w: Tensor, teacher: Teacher) -> Frame:
        """The frame of filters of shape (..., d). Raises: ConfigError when one is zero or of another length."""
        if w.shape[-1:] != teacher.w.shape:
            raise ConfigError(f"w has shape {tuple(w.shape)}, expected (..., {len(teacher.w)}) as the teacher's")
        norm = torch.linalg.vector_norm(w, dim=-1)
        if not bool((norm > 0).all()):
            raise ConfigError("w is zero: it has no direction, and the gradients have no value there")
        along, target = w / norm[..., None], teacher.w / torch.linalg.vector_norm(teacher.w)
        cos = (along @ target).clamp(-1, 1)
        rest = target - cos[..., None] * along
        sin = torch.linalg.vector_norm(rest, dim=-1)
        sin = sin.where(sin > PARALLEL, 0.0)
        across = rest / sin.where(sin > 0, 1.0)[..., None] * (sin > 0)[..., None]
        cos = cos.where(sin > 0, cos.sign())
        return cls(norm, along, across, cos, sin)

    @property
    def theta(self) -> Tensor:
        """θ, the angle between w and w*, 0 to π."""
        return torch.atan2(self.sin, self.cos)

    def vector(self, along: Tensor, across: Tensor) -> Tensor:
        """`along·ŵ + across·n̂`, shape (..., d)."""
        return along[..., None] * self.along + across[..., None] * self.across


def as_double(v: Tensor, w: Tensor, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """v and w in float64, checked. Raises: ConfigError when v does not have the teacher's length."""
    if v.shape[-1:] != teacher.v.shape:
        raise ConfigError(f"v has shape {tuple(v.shape)}, expected (..., {len(teacher.v)}) as the teacher's")
    return v.detach().to("cpu", torch.float64), w.detach().to("cpu", torch.float64)


def coupled(diagonal: Tensor | float, common: Tensor | float, v: Tensor) -> Tensor:
    """`(diagonal·I + common·11ᵀ) v`, shapes (...), (...), (..., m) → (..., m)."""
    first, second = (torch.as_tensor(value, dtype=v.dtype)[..., None] for value in (diagonal, common))
    return first * v + second * v.sum(-1, keepdim=True)


def binary_loss(v: Tensor, w: Tensor, teacher: Teacher) -> Tensor:
    """The population loss for `s(x) = 1[x > 0]`, shape (...).

    `f = ⅛ [vᵀ(I + 11ᵀ)v − 2 vᵀ((1 − 2θ/π)I + 11ᵀ)v* + v*ᵀ(I + 11ᵀ)v*]`.

    Raises: ConfigError when w is zero or a shape is wrong.

    Source: [yin2019understanding], Sec. 2.
    """
    v, w = as_double(v, w, teacher)
    turn = 1 - 2 * Frame.of(w, teacher).theta / math.pi
    student, mixed = coupled(1.0, 1.0, v), coupled(turn, 1.0, teacher.v)
    return ((v * (student - 2 * mixed)).sum(-1) + teacher.v @ coupled(1.0, 1.0, teacher.v)) / 8


def binary_gradients(v: Tensor, w: Tensor, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """The gradient of `binary_loss` with respect to v (..., m) and w (..., d).

    `∂f/∂v = ¼(I + 11ᵀ)v − ¼((1 − 2θ/π)I + 11ᵀ)v*` and
    `∂f/∂w = −vᵀv*/(2π‖w‖)·n̂`, n̂ the unit vector along `(I − wwᵀ/‖w‖²)w*`. At θ = 0 and π the loss has a kink; the
    second gradient is given as 0 there, the mean over the directions around.

    Raises: ConfigError when w is zero or a shape is wrong.

    Source: [yin2019understanding], Sec. 2.
    """
    v, w = as_double(v, w, teacher)
    frame = Frame.of(w, teacher)
    turn = 1 - 2 * frame.theta / math.pi
    slope = -(v @ teacher.v) / (2 * math.pi * frame.norm)
    by_v = (coupled(1.0, 1.0, v) - coupled(turn, 1.0, teacher.v)) / 4
    return by_v, frame.vector(torch.zeros_like(slope), slope)


def binary_coarse_gradient(v: Tensor, w: Tensor, teacher: Teacher, rule: BinaryRule) -> Tensor:
    """The expected coarse gradient with respect to w for `s(x) = 1[x > 0]`, shape (..., d).

    With `h = ‖v‖² + (1ᵀv)² − (1ᵀv)(1ᵀv*) + vᵀv*`:

    - relu, e = 1[x > 0]: `h/(2√(2π))·ŵ − cos(θ/2)·vᵀv*/√(2π)·(ŵ + ŵ*)/‖ŵ + ŵ*‖`;
    - clipped, e = 1[0 < x < 1]: `(h/2·p(0) − vᵀv*·p(θ))·ŵ − vᵀv*·q(θ)·n̂`, where
      `p(θ) = 1/(2π) ∫ cos φ·ξ(1/(‖w‖ cos φ)) dφ` and `q(θ) = 1/(2π) ∫ sin φ·ξ(1/(‖w‖ cos φ)) dφ` from θ − π/2 to π/2,
      and `ξ(x) = ∫ r² e^(−r²/2) dr` from 0 to x;
    - identity, e = 1: `(‖v‖²·ŵ − vᵀv*·ŵ*)/√(2π)`.

    Raises: ConfigError when w is zero, a shape is wrong or the rule is another.

    Source: [yin2019understanding], Sec. 3; clipped in the frame (ŵ, n̂) instead of (ŵ, ŵ + ŵ*).
    """
    v, w = as_double(v, w, teacher)
    frame = Frame.of(w, teacher)
    inner, h = v @ teacher.v, _h(v, teacher)
    if rule == "identity":
        root = math.sqrt(2 * math.pi)
        return frame.vector((v.square().sum(-1) - inner * frame.cos) / root, -inner * frame.sin / root)
    if rule == "relu":
        root = 2 * math.sqrt(2 * math.pi)
        # cos(θ/2)·(ŵ + ŵ*)/‖ŵ + ŵ*‖ = ((1 + cos θ)·ŵ + sin θ·n̂)/2: defined at θ = π as well.
        return frame.vector((h - inner * (1 + frame.cos)) / root, -inner * frame.sin / root)
    if rule == "clipped":
        p0, _ = _clipped_integrals(torch.zeros_like(frame.theta), frame.norm)
        p, q = _clipped_integrals(frame.theta, frame.norm)
        return frame.vector(h / 2 * p0 - inner * p, -inner * q)
    raise ConfigError(f"rule {rule!r} has no closed form here; there is one for relu, clipped and identity")


def binary_opposite(teacher: Teacher) -> Tensor:
    """The v, shape (m,), of the critical point at θ = π for `s(x) = 1[x > 0]`: `(I + 11ᵀ)⁻¹(11ᵀ − I)v*`.

    With it, every w opposite to w* is a spurious local minimum if `vᵀv* < 0`, that is
    `(1ᵀv*)² < ½(m + 1)‖v*‖²`, and a saddle otherwise.

    Source: [yin2019understanding], Sec. 2.
    """
    return torch.linalg.solve(torch.eye(len(teacher.v), dtype=torch.float64) + 1, coupled(-1.0, 1.0, teacher.v))


def _h(v: Tensor, teacher: Teacher) -> Tensor:
    total = v.sum(-1)
    return v.square().sum(-1) + total.square() - total * teacher.v.sum() + v @ teacher.v


def normal_density(x: Tensor) -> Tensor:
    """φ(x), of the standard normal."""
    return (-x.square() / 2).exp() / math.sqrt(2 * math.pi)


def thresholds(quantizer: AbstractQuantizer) -> Tensor:
    """Where the staircase rises, in step units, shape (levels − 1,), by bisection on `discretize`.

    Raises: ConfigError when `discretize` is not an increasing staircase over its grid.
    """
    grid = quantizer.grid
    below = grid.low + grid.step * torch.arange(grid.count - 1, dtype=torch.float64)
    bound = 2.0 ** math.ceil(math.log2(2 * max(abs(grid.low), abs(grid.high)) + 2))
    left, right = torch.full_like(below, -bound), torch.full_like(below, bound)
    for _ in range(80):
        middle = (left + right) / 2
        above = quantizer.discretize(middle) > below
        left, right = middle.where(~above, left), middle.where(above, right)
    found = (right * _GRAIN).round() / _GRAIN
    z = torch.linspace(-bound, bound, 4001, dtype=torch.float64) + 1e-5
    if not torch.equal(quantizer.discretize(z), grid.low + grid.step * (z[:, None] > found).sum(-1).double()):
        raise ConfigError("the quantizer's discretize is not an increasing staircase over the codes of its grid")
    return found


def proxy(estimator: AbstractEstimator, quantizer: AbstractQuantizer) -> Callable[[Tensor], Tensor]:
    """e(z): what the estimator puts in the place of the derivative of the staircase.

    Raises:
        ConfigError: the estimator is not defined for the quantizer's activations, or there is no such function, because
            it mixes entries or is not linear in the gradient.
    """
    check_pair(estimator, quantizer, "activations")
    name = ESTIMATORS.name_of(type(estimator), default=type(estimator).__name__)
    for holds, what in ((estimator.linear_in_grad, "linear in the gradient"), (estimator.elementwise, "elementwise")):
        if not holds:
            raise ConfigError(
                f"estimator '{name}' is not {what}: its expected coarse gradient is not an integral over one function "
                "e(z); use sample_gradients, which takes any estimator"
            )
    return lambda z: estimator.vjp(z, quantizer.discretize(z), torch.ones_like(z), quantizer.grid)


def jumps(function: Callable[[Tensor], Tensor], bound: float, cells: int = 8192) -> Tensor:
    """Where a piecewise smooth function on [−bound, bound] jumps by more than 10⁻⁶, at most once in a cell."""
    edges = torch.linspace(-bound, bound, cells + 1, dtype=torch.float64) + bound / cells / math.pi
    left, right = edges[:-1], edges[1:]
    low, high = function(left), function(right)
    for _ in range(60):
        middle = (left + right) / 2
        value = function(middle)
        first = (value - low).abs() > (high - value).abs()
        right, high = middle.where(first, right), value.where(first, high)
        left, low = left.where(first, middle), low.where(first, value)
    return (right[(high - low).abs() > 1e-6] * _GRAIN).round() / _GRAIN


@cache
def gauss_legendre(order: int) -> tuple[Tensor, Tensor]:
    """Nodes on [−1, 1] and weights of the Gauss–Legendre rule."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def _clipped_integrals(theta: Tensor, norm: Tensor, panels: int = 64, order: int = 16) -> tuple[Tensor, Tensor]:
    """p(θ) and q(θ), with ξ(x) = √(π/2)·erf(x/√2) − x·e^(−x²/2)."""
    nodes, weights = gauss_legendre(order)
    # Panels that shrink towards φ = ±π/2, where ξ turns to its limit within a distance of 1/‖w‖.
    edges = torch.linspace(-1, 1, panels + 1, dtype=torch.float64).mul(math.pi / 2).sin() * (math.pi / 2)
    start = (theta - math.pi / 2)[..., None]
    edges = torch.maximum(edges, start)
    half = (edges[..., 1:] - edges[..., :-1])[..., None] / 2
    phi = edges[..., :-1, None] + half * (1 + nodes)
    x = 1 / (norm[..., None, None] * phi.cos())
    xi = math.sqrt(math.pi / 2) * torch.erf(x / math.sqrt(2)) - x * (-x.square() / 2).exp()
    weighted = half * weights * xi / (2 * math.pi)
    return (weighted * phi.cos()).sum((-2, -1)), (weighted * phi.sin()).sum((-2, -1))


@dataclass(frozen=True, eq=False)
class Estimate:
    """A mean over samples and its standard error, of the same shape."""

    mean: Tensor
    error: Tensor


@dataclass(frozen=True, eq=False)
class SampledGradients:
    """Means over Gaussian inputs: the loss (...), its gradient by v (..., m), the coarse gradient by w (..., d)."""

    loss: Estimate
    v: Estimate
    w: Estimate


@torch.no_grad()
def sample_gradients(
    v: Tensor,
    w: Tensor,
    teacher: Teacher,
    quantizer: AbstractQuantizer,
    estimator: AbstractEstimator,
    samples: int,
    generator: torch.Generator,
    batch: int = 4096,
) -> SampledGradients:
    """Loss, gradient and coarse gradient as means over `samples` inputs Z, for any staircase and estimator.

    For each input: `½(y − y*)²`, `s(Zw)·(y − y*)`, and `Zᵀ e` with `e_i` the estimator's answer to the gradient
    `v_i·(y − y*)` of code i. The runs in the leading dimensions of v and w share the inputs.

    Args:
        v: shape (..., m).
        w: shape (..., d).
        teacher: what is to be learnt.
        quantizer: its `discretize` is the staircase; its scale is not used.
        estimator: any that acts on activations, also one that is not linear in the gradient.
        samples: how many inputs, at least 2.
        generator: of the inputs.
        batch: how many at a time.

    Raises:
        ConfigError: the estimator is not defined for the quantizer's activations, or there are too few samples.
    """
    check_pair(estimator, quantizer, "activations")
    if samples < 2:
        raise ConfigError(f"samples={samples}: a standard error needs at least 2")
    v, w = as_double(v, w, teacher)
    runs = (v[..., 0] + w[..., 0]).shape
    v, w = v.expand(*runs, -1), w.expand(*runs, -1)
    sums: list[Tensor] = []
    for start in range(0, samples, batch):
        count = min(batch, samples - start)
        shape = (count, len(teacher.v), len(teacher.w))
        inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
        parts = _per_sample(inputs, v, w, teacher, quantizer, estimator)
        found = [moment.sum(0) for part in parts for moment in (part, part.square())]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    estimates = []
    for total, squares in zip(sums[::2], sums[1::2], strict=True):
        mean = total / samples
        variance = (squares / samples - mean.square()).clamp_min(0) / (samples - 1)
        estimates.append(Estimate(mean, variance.sqrt()))
    return SampledGradients(*estimates)


def _per_sample(
    inputs: Tensor,
    v: Tensor,
    w: Tensor,
    teacher: Teacher,
    quantizer: AbstractQuantizer,
    estimator: AbstractEstimator,
) -> tuple[Tensor, Tensor, Tensor]:
    """For inputs (n, m, d): the loss (n, ...), its gradient by v (n, ..., m), the coarse one by w (n, ..., d)."""
    z = torch.einsum("nmd,...d->n...m", inputs, w)
    codes = quantizer.discretize(z)
    wrong = (codes * v).sum(-1)
    target = quantizer.discretize(inputs @ teacher.w) @ teacher.v
    wrong = wrong - target.reshape(-1, *[1] * (wrong.ndim - 1))
    passed = estimator.vjp(z, codes, v * wrong[..., None], quantizer.grid)
    return wrong.square() / 2, codes * wrong[..., None], torch.einsum("n...m,nmd->n...d", passed, inputs)
