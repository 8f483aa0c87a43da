"""The checker's questions about the Gaussian one-hidden-layer problem."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from lowbit.estimators import AbstractEstimator
from lowbit.quantizers import AbstractQuantizer, build_quantizer
from lowbit.theory.gaussian import Teacher, sample_gradients
from lowbit.theory.gaussian_population import CriticalPoint, Population, critical_points
from lowbit.theory.outcomes import VANISHES, AtMinimum, Curve, Outcome, confidence, said

STEPS = 300
"""Steps of the Gaussian problem, of size RATE."""
RATE = 0.5
SAMPLES = 1 << 16
"""Inputs over which an estimator that is not linear in the gradient is averaged at a minimum; a step takes 1/64."""
RISES = 1.05
"""Descent that starts beside a minimum is repelled when the loss exceeds that of the minimum by this factor."""


class GaussianCheck:
    """The Gaussian problem for one estimator: population means if it is linear in the gradient, samples otherwise."""

    def __init__(self, estimator: AbstractEstimator, quantizer: AbstractQuantizer, seeds: int) -> None:
        self.estimator, self.seeds = estimator, seeds
        one_sided = quantizer.grid.one_sided
        self.binary = build_quantizer("staircase" if one_sided else "sign", 1)
        self.generator = torch.Generator().manual_seed(0)
        self.population = Population(self.binary, _teacher(self.generator))
        self.opposite = critical_points(self.population)[1]
        self.scale = float(self.population.loss(torch.zeros_like(self.opposite.v), self.opposite.w))

    def outcome(self) -> Outcome:
        """Descent from random weights."""
        title = "Gaussian one-hidden-layer problem"
        v, w = _random(self.seeds, self.population.teacher, self.generator)
        losses, w = self.descend(v, w)
        reached = losses[-1] <= 0.01 * self.scale
        stuck = (losses[-1] - self.opposite.loss).abs() <= 0.01 * self.scale
        converged = int((reached | stuck).sum())
        interval = confidence(converged, self.seeds)
        text = (
            f"{title}: {converged} of {self.seeds} runs came to rest at a minimum ({int(reached.sum())} at the global "
            f"one), {said(interval)}"
        )
        return Outcome(title, True, self.seeds, converged, interval, text, _curves(losses / self.scale))

    @cached_property
    def at_minimum(self) -> AtMinimum:
        """At the point opposite to the teacher."""
        point = self.opposite
        v, w = _random(64, self.population.teacher, self.generator, point)
        usual = float(self.coarse(v, w, 64).square().sum(-1).mean().sqrt())
        relative = float(self.coarse(point.v, point.w, 1).norm()) / usual if usual else 0.0
        if not point.spurious:
            text = "Gaussian problem: every minimum is a global one, where any coarse gradient is 0"
            return AtMinimum(relative, 0, 0, 1.0, text)
        left, rise, curves = self.leaves(point) if self.seeds else (0, 1.0, ())
        said = "vanishes" if relative < VANISHES else "does not vanish"
        text = f"the coarse gradient {said} at a known local minimum ({relative:.2g} of its usual size)"
        if self.seeds:
            stays = f"{self.seeds - left} of {self.seeds} descents that start beside it stay"
            text += (
                f"; {stays}" if not left else f"; {stays}, and the loss rises to {rise:.3g} times that of the minimum"
            )
        return AtMinimum(relative, left, self.seeds, rise, text, curves)

    def leaves(self, point: CriticalPoint) -> tuple[int, float, tuple[Curve, ...]]:
        """In how many descents from beside the point the loss rises, how far, and all of them."""
        v, w = _random(self.seeds, self.population.teacher, self.generator, point)
        losses, _ = self.descend(point.v + 0.02 * v, point.w + 0.02 * w)
        highest = losses.amax(0) / point.loss
        return int((highest > RISES).sum()), max(1.0, float(highest.max())), _curves(losses / point.loss)

    def coarse(self, v: Tensor, w: Tensor, batches: int) -> Tensor:
        """The expected coarse gradient with respect to w, or its mean over samples."""
        if self.estimator.linear_in_grad:
            return self.population.coarse_gradient(v, w, self.estimator)
        samples = SAMPLES // batches
        found = sample_gradients(v, w, self.population.teacher, self.binary, self.estimator, samples, self.generator)
        return found.w.mean

    def descend(self, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """The population loss before each step and after the last, (steps + 1, runs), and w at the end."""
        linear = self.estimator.linear_in_grad
        rule = self.population.rule(self.estimator) if linear else None
        losses, alive = [], torch.ones(len(v), dtype=torch.bool)
        for _ in range(STEPS):
            if rule is not None:
                loss, by_v, coarse = self.population.step(v, w, rule)
            else:
                loss, (by_v, _) = self.population.loss(v, w), self.population.gradients(v, w)
                coarse = self.coarse(v, w, 64)
            losses.append(loss.where(alive, torch.inf))
            moved_v, moved_w = v - RATE * by_v, w - RATE * coarse
            # A run whose weights are no longer finite stays where it was, and counts as diverged.
            alive = alive & moved_v.isfinite().all(-1) & moved_w.isfinite().all(-1) & (moved_w.norm(dim=-1) > 0)
            v, w = moved_v.where(alive[:, None], v), moved_w.where(alive[:, None], w)
        return torch.stack([*losses, self.population.loss(v, w).where(alive, torch.inf)]), w


def _curves(losses: Tensor) -> tuple[Curve, ...]:
    return tuple((list(range(len(losses))), run.tolist()) for run in losses.T)


def _teacher(generator: torch.Generator) -> Teacher:
    """v* and w* of norm 1, with (1ᵀv*)² = (m + 1)/4: the opposite point is then a clear local minimum."""
    m, d = 6, 4
    v = torch.randn(m, generator=generator, dtype=torch.float64)
    v -= v.mean()
    mean = math.sqrt((m + 1) / 4) / m
    v = v / v.norm() * math.sqrt(1 - m * mean**2) + mean
    w = torch.randn(d, generator=generator, dtype=torch.float64)
    return Teacher(v, w / w.norm())


def _random(
    count: int, teacher: Teacher, generator: torch.Generator, like: CriticalPoint | None = None
) -> tuple[Tensor, Tensor]:
    """Random v (count, m) and w (count, d), of the norms of the teacher's or of a point's."""
    like_v, like_w = (teacher.v, teacher.w) if like is None else (like.v, like.w)
    found = []
    for size in (like_v, like_w):
        x = torch.randn(count, len(size), generator=generator, dtype=torch.float64)
        found.append(x / x.norm(dim=-1, keepdim=True) * size.norm())
    return found[0], found[1]
