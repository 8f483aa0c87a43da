"""Population loss and expected coarse gradient of the Gaussian one-hidden-layer network, for every staircase.

With `ŵ = w/‖w‖`, a = ŵ·z and b = n̂·z (n̂: the unit vector across, in the plane of w and w*), a row's student code is
`S = s(‖w‖ a)` and its teacher code `T = s(‖w*‖(cos θ·a + sin θ·b))`. The rows are independent, so that all that is
wanted depends on the moments of one row:

- `f = ½ [vᵀ(αI + β11ᵀ)v − 2 vᵀ(γI + δ11ᵀ)v* + v*ᵀ(α*I + β*11ᵀ)v*]` with `α = Var S`, `β = (ES)²`, `γ = Cov(S, T)`,
  `δ = ES·ET`, and α*, β* likewise of T;
- `E g = [‖v‖²·E a e (S − ES) + (1ᵀv)²·ES·E a e − vᵀv*·E a e (T − ET) − (1ᵀv)(1ᵀv*)·ET·E a e]·ŵ − vᵀv*·E b e T·n̂`.

E over b is a sum of normal distribution functions and densities at the thresholds; E over a is composite Gauss–Legendre
quadrature between the thresholds, the jumps of the estimator, and points that follow the teacher's steps as they
sharpen towards θ = 0 and π. Derivatives by ‖w‖ and θ are exact. Source: ours; for `s(x) = 1[x > 0]` it gives the closed
forms of [yin2019understanding].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators import AbstractEstimator
from lowbit.quantizers import AbstractQuantizer
from lowbit.theory.gaussian import (
    Frame,
    Teacher,
    as_double,
    coupled,
    gauss_legendre,
    jumps,
    normal_density,
    proxy,
    thresholds,
)

REACH = 9.0
"""How far out the standard normal is integrated: its tail beyond is 10⁻¹⁹."""
ORDER = 16
_WIDTHS = torch.tensor([-8.0, -6, -4.5, -3, -2, -1, 0, 1, 2, 3, 4.5, 6, 8], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Proxy:
    """e(z), what an estimator puts in the place of the staircase's derivative, and the z where it may not be smooth."""

    e: Callable[[Tensor], Tensor]
    breaks: Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """α, β, γ, δ of the module's docstring and their derivatives by ‖w‖ and, γ alone, by θ; each (...)."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    delta: Tensor
    by_norm: tuple[Tensor, Tensor, Tensor, Tensor]
    gamma_by_theta: Tensor


@dataclass(frozen=True, eq=False)
class _Rows:
    """At the nodes of the quadrature over a: z = ‖w‖·a, the weights, S, E[T | a] and E[b T | a]; each (..., n)."""

    z: Tensor
    weight: Tensor
    student: Tensor
    teacher: Tensor
    moved: Tensor


@dataclass(frozen=True, eq=False)
class Population:
    """Means over all inputs for one staircase and one teacher.

    Args:
        quantizer: its `discretize` is the staircase, increasing; its scale is not used.
        teacher: what is to be learnt.

    Raises:
        ConfigError: the quantizer is not an increasing staircase.
    """

    quantizer: AbstractQuantizer
    teacher: Teacher

    def __post_init__(self) -> None:
        _ = self.thresholds

    @cached_property
    def thresholds(self) -> Tensor:
        """Of the staircase, shape (levels − 1,)."""
        return thresholds(self.quantizer)

    @cached_property
    def scale_free(self) -> bool:
        """Whether the codes do not depend on ‖w‖: the only threshold is 0."""
        return not bool(self.thresholds.any())

    @cached_property
    def teacher_norm(self) -> float:
        """‖w*‖."""
        return float(torch.linalg.vector_norm(self.teacher.w))

    @cached_property
    def teacher_moments(self) -> tuple[float, float]:
        """E T and Var T."""
        mean, second, *_ = self._student(torch.tensor(self.teacher_norm, dtype=torch.float64))
        return float(mean), float(second - mean.square())

    def loss(self, v: Tensor, w: Tensor) -> Tensor:
        """The population loss f, shape (...). Raises: ConfigError when w is zero or a shape is wrong."""
        v, w = as_double(v, w, self.teacher)
        return self._loss(v, self.moments(Frame.of(w, self.teacher)))

    def gradients(self, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the population loss with respect to v (..., m) and w (..., d).

        `∂f/∂v = (αI + β11ᵀ)v − (γI + δ11ᵀ)v*`, `∂f/∂w = ∂f/∂‖w‖·ŵ − (1/‖w‖)·∂f/∂θ·n̂`, with
        `∂γ/∂θ = −1/(2π) Σ_kl Δ² exp(−(x_k² − 2 x_k y_l cos θ + y_l²)/(2 sin² θ))` over the student's thresholds
        x_k = t_k/‖w‖ and the teacher's y_l (Price's theorem). At θ = 0 and π, where the loss may have a kink, the
        component across is given as 0.

        Raises: ConfigError when w is zero or a shape is wrong.
        """
        v, w = as_double(v, w, self.teacher)
        frame = Frame.of(w, self.teacher)
        moments = self.moments(frame)
        inner, both = v @ self.teacher.v, v.sum(-1) * self.teacher.v.sum()
        alpha, beta, gamma, delta = moments.by_norm
        by_norm = (alpha * v.square().sum(-1) + beta * v.sum(-1).square()) / 2 - gamma * inner - delta * both
        by_theta = -inner * moments.gamma_by_theta
        return self._by_v(v, moments), frame.vector(by_norm, -by_theta / frame.norm)

    def coarse_gradient(self, v: Tensor, w: Tensor, estimator: AbstractEstimator) -> Tensor:
        """The expected coarse gradient with respect to w, shape (..., d); formula in the module's docstring.

        An estimator's kinks cost accuracy unless they lie at thresholds, codes or jumps, and jumps are looked for up to
        four times the largest code.

        Raises: ConfigError when w is zero, a shape is wrong, or the estimator is none that `proxy` takes.
        """
        v, w = as_double(v, w, self.teacher)
        frame, rule = Frame.of(w, self.teacher), self.rule(estimator)
        return self._coarse(v, frame, rule, self._rows(frame, rule.breaks))

    def step(self, v: Tensor, w: Tensor, rule: Proxy) -> tuple[Tensor, Tensor, Tensor]:
        """What a step of descent needs: f, ∂f/∂v and E g; v and w in float64."""
        frame = Frame.of(w, self.teacher)
        rows = self._rows(frame, rule.breaks)
        moments = self._moments(frame, rows)
        return self._loss(v, moments), self._by_v(v, moments), self._coarse(v, frame, rule, rows)

    def best_v(self, w: Tensor) -> Tensor:
        """The v that minimises the loss for a given w: `(αI + β11ᵀ)⁻¹(γI + δ11ᵀ)v*`, shape (..., m)."""
        moments = self.moments(Frame.of(w, self.teacher))
        count, mean = len(self.teacher.v), self.teacher.v.mean()
        spread = (moments.gamma / moments.alpha)[..., None] * (self.teacher.v - mean)
        common = (moments.gamma + count * moments.delta) / (moments.alpha + count * moments.beta) * mean
        return spread + common[..., None]

    def moments(self, frame: Frame) -> Moments:
        """The moments of one row for filters in a given frame."""
        return self._moments(frame, self._rows(frame, self.thresholds[:0]))

    def _moments(self, frame: Frame, rows: _Rows) -> Moments:
        mean, second, mean_by_norm, second_by_norm = self._student(frame.norm)
        teacher_mean, _ = self.teacher_moments
        gamma = (rows.weight * (rows.student - mean[..., None]) * (rows.teacher - teacher_mean)).sum(-1)
        x = self.thresholds / frame.norm[..., None]
        at, _ = self._teacher_given(x, frame)
        step = self.quantizer.grid.step
        gamma_by_norm = (step * normal_density(x) * x * (at - teacher_mean)).sum(-1) / frame.norm
        by_norm = (
            second_by_norm - 2 * mean * mean_by_norm,
            2 * mean * mean_by_norm,
            gamma_by_norm,
            teacher_mean * mean_by_norm,
        )
        beta = mean.square()
        by_theta = self._gamma_by_theta(x, frame)
        return Moments(second - beta, beta, gamma, mean * teacher_mean, by_norm, by_theta)

    def _by_v(self, v: Tensor, moments: Moments) -> Tensor:
        return coupled(moments.alpha, moments.beta, v) - coupled(moments.gamma, moments.delta, self.teacher.v)

    def _loss(self, v: Tensor, moments: Moments) -> Tensor:
        target = self.teacher.v
        mean, variance = self.teacher_moments
        student = (v * coupled(moments.alpha, moments.beta, v)).sum(-1)
        mixed = (v * coupled(moments.gamma, moments.delta, target)).sum(-1)
        return (student - 2 * mixed + target @ coupled(variance, mean**2, target)) / 2

    def rule(self, estimator: AbstractEstimator) -> Proxy:
        """e for this staircase. Raises: ConfigError when the estimator is none that `proxy` takes."""
        grid = self.quantizer.grid
        e = proxy(estimator, self.quantizer)
        codes = torch.arange(grid.low, grid.high + 1, grid.step, dtype=torch.float64)
        return Proxy(e, torch.cat([jumps(e, 4.0 * max(abs(grid.low), abs(grid.high))), codes, codes.new_zeros(1)]))

    def _coarse(self, v: Tensor, frame: Frame, rule: Proxy, rows: _Rows) -> Tensor:
        across = rows.weight * rule.e(rows.z)
        along = across * rows.z / frame.norm[..., None]
        base, student, teacher = along.sum(-1), (along * rows.student).sum(-1), (along * rows.teacher).sum(-1)
        mean, *_ = self._student(frame.norm)
        target, (target_mean, _) = self.teacher.v, self.teacher_moments
        inner, total = v @ target, v.sum(-1)
        own = v.square().sum(-1) * (student - mean * base) - inner * (teacher - target_mean * base)
        common = total * (total * mean - target.sum() * target_mean) * base
        return frame.vector(own + common, -inner * (across * rows.moved).sum(-1))

    def _student(self, norm: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """E S, E S² and their derivatives by ‖w‖, each (...)."""
        grid = self.quantizer.grid
        x = self.thresholds / norm[..., None]
        codes = grid.low + grid.step * torch.arange(grid.count, dtype=torch.float64)
        above, moving = torch.special.ndtr(-x), normal_density(x) * x / norm[..., None]
        rise, rise_squared = codes.diff(), codes.square().diff()
        mean, second = grid.low + (rise * above).sum(-1), grid.low**2 + (rise_squared * above).sum(-1)
        return mean, second, (rise * moving).sum(-1), (rise_squared * moving).sum(-1)

    def _teacher_given(self, a: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """E[T | a] and E[b T | a] for a of shape (..., n)."""
        grid = self.quantizer.grid
        y = self.thresholds / self.teacher_norm
        sin = frame.sin.clamp_min(1e-300)[..., None, None]  # parallel filters: the limits, steps
        distance = (frame.cos[..., None, None] * a[..., None] - y) / sin
        given = grid.low + grid.step * torch.special.ndtr(distance).sum(-1)
        return given, grid.step * normal_density(distance).sum(-1)

    def _gamma_by_theta(self, x: Tensor, frame: Frame) -> Tensor:
        y = self.thresholds / self.teacher_norm
        cos, square = frame.cos[..., None, None], frame.sin.square()[..., None, None]
        less, more = (1 - cos).where(cos < 0, square / (1 + cos)), (1 + cos).where(cos > 0, square / (1 - cos))
        # (x² − 2xy cos θ + y²)/(2 sin² θ), in a form that has its limits at θ = 0 and π: 0/0 stands for 0 there.
        near, far = (x[..., None] - y).square() / less, (x[..., None] + y).square() / more
        power = (near.nan_to_num(nan=0.0, posinf=torch.inf) + far.nan_to_num(nan=0.0, posinf=torch.inf)) / 4
        return -(self.quantizer.grid.step**2) * (-power).exp().sum((-2, -1)) / (2 * math.pi)

    def _rows(self, frame: Frame, breaks: Tensor) -> _Rows:
        a, weight = self._nodes(frame, breaks)
        z = frame.norm[..., None] * a
        return _Rows(z, weight, self.quantizer.discretize(z), *self._teacher_given(a, frame))

    def _nodes(self, frame: Frame, breaks: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes in a, and weights times the normal density, each (..., n); `breaks` in z."""
        shape = frame.norm.shape
        plain = torch.linspace(-REACH, REACH, 37, dtype=torch.float64).expand(*shape, -1)
        own = torch.cat([self.thresholds, breaks]) / frame.norm[..., None]
        y = self.thresholds / self.teacher_norm
        y = y[y.abs() <= REACH]
        slope = frame.cos.where(frame.cos.abs() > 1e-3, 1e-3)[..., None, None]
        steps = (y[:, None] + frame.sin[..., None, None] * _WIDTHS) / slope
        edges = torch.cat([plain, own, steps.flatten(-2)], dim=-1).clamp(-REACH, REACH).sort(dim=-1).values
        nodes, weights = gauss_legendre(ORDER)
        half = (edges[..., 1:] - edges[..., :-1])[..., None] / 2
        a = (edges[..., :-1, None] + half * (1 + nodes)).flatten(-2)
        return a, (half * weights).flatten(-2) * normal_density(a)


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """Weights from which no direction lowers the population loss to first order, v (m,) and w (d,), and the loss there.

    `local_minimum` tells whether none lowers it at all nearby; `spurious` whether, besides, the loss is above 10⁻⁶ of
    `½ E y*²`.
    """

    v: Tensor
    w: Tensor
    loss: float
    local_minimum: bool
    spurious: bool


def critical_points(population: Population, norm: float | None = None) -> tuple[CriticalPoint, CriticalPoint]:
    """The global minimum, v* and w*, and the best point opposite to it, θ = π.

    The second minimises the loss over v, `v = (αI + β11ᵀ)⁻¹(γI + δ11ᵀ)v*`, and over ‖w‖. It is a local minimum where
    `vᵀv* < 0`: `∂f/∂θ = −vᵀv*·∂γ/∂θ` and `∂γ/∂θ < 0` for every θ between 0 and π, so that leaving θ = π raises the
    loss whatever v and ‖w‖ do nearby; otherwise it is a saddle. (The rise or fall is linear in π − θ where a threshold
    of the student is opposite to one of the teacher, t_k/‖w‖ = −t_l/‖w*‖, as 0 is; else it is exponentially weak.)
    Staircases with `s(−z) = −s(z)`, such as the sign, have a second global minimum there, v = −v*. Where the codes do
    not depend on ‖w‖, w has norm 1.

    One-sided staircases of several steps have no best ‖w‖ there: the loss falls towards ‖w‖ = ∞, and towards 0 if the
    first threshold is 0, where the student can tell the sign of its input alone. `norm` then holds ‖w‖.

    Args:
        population: the staircase and the teacher.
        norm: ‖w‖ of the second point, which is then critical for, and a local minimum among, filters of that norm.

    Raises:
        ConfigError: no norm is given and none from ‖w*‖/150 to 150·‖w*‖ is the best, or it is not above 0.

    Source: for `s(x) = 1[x > 0]` [yin2019understanding], Sec. 2 and 3; otherwise ours.
    """
    teacher, unit = population.teacher, 1 / population.teacher_norm
    if norm is None:
        norm = 1.0 if population.scale_free else _opposite_norm(population)
    if not 0 < norm < math.inf:
        raise ConfigError(f"norm={norm} of the filter must be a number above 0")
    w = -norm * unit * teacher.w
    v = population.best_v(w)
    if not bool(v.isfinite().all()):
        raise ConfigError(f"norm={norm} is so small that the student's codes are constant; give a larger one")
    loss, scale = float(population.loss(v, w)), float(population.loss(torch.zeros_like(v), w))
    below = bool(v @ teacher.v < -1e-12 * (teacher.v @ teacher.v))
    best = CriticalPoint(teacher.v, teacher.w * (unit if population.scale_free else 1.0), 0.0, True, False)
    return best, CriticalPoint(v, w, loss, below, below and loss > 1e-6 * scale)


def _opposite_norm(population: Population) -> float:
    """The ‖w‖ that minimises the loss at θ = π: the best of a grid, then bisection on the derivative."""
    direction = -population.teacher.w / population.teacher_norm
    norms = population.teacher_norm * torch.linspace(-5, 5, 201, dtype=torch.float64).exp()
    candidates = norms[:, None] * direction
    parts = [candidates[start : start + 20] for start in range(0, len(norms), 20)]
    losses = torch.cat([population.loss(population.best_v(w), w) for w in parts])
    losses = losses.nan_to_num(nan=torch.inf)
    best = int(losses.argmin())
    # Strictly lower than at both ends: a valley that is flat towards an end has no best norm, only rounding errors.
    if not bool(losses[best] < losses[[0, -1]].min() - 1e-9 * losses.median()):
        raise ConfigError(
            "no norm of w from 1/150 to 150 times the teacher's is the best opposite to the teacher, the loss falls "
            "towards the ends; give the norm to look at"
        )
    left, right = float(norms[best - 1]), float(norms[best + 1])
    for _ in range(60):
        middle = (left + right) / 2
        w = middle * direction
        rising = float(population.gradients(population.best_v(w), w)[1] @ direction) > 0
        left, right = (left, middle) if rising else (middle, right)
    return (left + right) / 2


@dataclass(frozen=True, eq=False)
class PopulationDescent:
    """Where coarse gradient descent went.

    `loss`: before each step and after the last, (steps + 1, ...). `v`, `w`, `coarse`: the weights at the end and the
    expected coarse gradient there. `at_global`, `at_spurious`: whether a run ended at loss 0, or at the best point
    opposite to the teacher for its ‖w‖; (...).
    """

    loss: Tensor
    v: Tensor
    w: Tensor
    coarse: Tensor
    at_global: Tensor
    at_spurious: Tensor


def descend_population(
    population: Population,
    estimator: AbstractEstimator,
    v: Tensor,
    w: Tensor,
    rate: float = 0.1,
    steps: int = 1000,
    tolerance: float = 1e-3,
) -> PopulationDescent:
    """Coarse gradient descent on the means: `v ← v − η ∂f/∂v`, `w ← w − η E g`, for all leading dimensions at once.

    Args:
        population: the staircase and the teacher.
        estimator: as for `Population.coarse_gradient`.
        v: where v starts, shape (..., m).
        w: where w starts, shape (..., d).
        rate: η.
        steps: how many.
        tolerance: a run is at a point whose loss it has up to this share of `½ E y*²`; at the one opposite to the
            teacher it must be on that side as well, θ > π/2.

    Raises: ConfigError when w is zero, a shape is wrong, or `proxy` does not take the estimator.

    Source: [yin2019understanding], Sec. 2 and 3; for other staircases ours.
    """
    rule = population.rule(estimator)
    v, w = as_double(v, w, population.teacher)
    losses = []
    for _ in range(steps):
        loss, by_v, coarse = population.step(v, w, rule)
        losses.append(loss)
        v, w = v - rate * by_v, w - rate * coarse
    loss, _, coarse = population.step(v, w, rule)
    teacher = population.teacher
    share = tolerance * population.loss(torch.zeros_like(teacher.v), teacher.w)
    frame = Frame.of(w, teacher)
    opposite = -(frame.norm / population.teacher_norm)[..., None] * teacher.w
    stuck = (loss - population.loss(population.best_v(opposite), opposite)).abs() <= share
    at_global, away = loss <= share, frame.cos < 0
    return PopulationDescent(torch.stack([*losses, loss]), v, w, coarse, at_global, stuck & away & ~at_global)
