"""Coarse gradient descent on the two-linear-layer network, for many runs at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.theory.subspaces import RADIUS, Radius, Subspaces, check_radius, draw, stack
from lowbit.theory.two_layer import TwoLayerNetwork

SPACING = 20
"""The descent is looked at after every iteration at first, and later each time 1/SPACING of the iterations so far have
passed: to 5 % of the time, on some 150 occasions in all."""

BLOCK = 64
"""Each seed draws the coordinates of this many batches at a time: many small draws would take longer than the steps."""

CACHED = 2**17
"""The evaluation takes about this many pre-activations at a time."""

CHECKPOINTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""The coarse gradient is compared with the population gradient at the first look from each of these iterations on,
while the loss is positive."""


@dataclass(frozen=True)
class DescentOptions:
    """How to descend. The step size is in the range of [long2021coarse]; all other numbers are ours."""

    eta: float = 1.0
    """Step size η."""
    iterations: int = 10_000
    """The most steps taken."""
    batch: int = 32
    """Fresh points of each class in each step."""
    radius: Radius = RADIUS
    """The least and the largest norm of a point."""
    initial: float = 1.0
    """Standard deviation of the entries of W at the start."""
    evaluation: int = 2048
    """Points of each class in the fixed sample on which loss, accuracy and the norm of the gradient are recorded."""
    sample: int = 8192
    """Points of each class in the sample on which the population gradient is computed."""
    checkpoints: tuple[int, ...] = CHECKPOINTS
    """From which iterations on coarse and population gradient are compared next; none: never, which is faster."""

    def __post_init__(self) -> None:
        for name in ("eta", "initial"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}, expected a number above 0")
        for name in ("iterations", "batch", "evaluation", "sample"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        check_radius(self.radius)


@dataclass(eq=False)
class Run:
    """What one run recorded."""

    family: int
    """Which of the families of subspaces it was given."""
    seed: int
    iterations: list[int] = field(default_factory=list)
    """The iterations at which the next three were recorded, on the evaluation sample."""
    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    coarse_gradient_norm: list[float] = field(default_factory=list)
    """‖∇̃‖ over all of W."""
    cosines: list[tuple[int, float]] = field(default_factory=list)
    """Iteration, and the cosine between the coarse gradient and the population gradient."""
    iterations_to_zero: int | None = None
    """The first iteration looked at (see SPACING) at which the loss of every point of the evaluation sample is exactly
    0; None: never."""
    largest_preactivation: float = -math.inf
    """The largest h met on the evaluation sample."""
    diverged: bool = False
    """The weights or the loss stopped being finite; what was recorded until then is kept."""
    weights: Tensor | None = None
    """W [d, k] at the end."""


@torch.no_grad()
def descend(
    network: TwoLayerNetwork,
    families: Sequence[Subspaces],
    seeds: Sequence[int],
    options: DescentOptions | None = None,
) -> list[Run]:
    """Coarse gradient descent, `W ← W − η ∇̃`, on fresh points in each step, for each family of subspaces and each seed.

    All runs advance together. A run ends when its loss on the evaluation sample is exactly 0, when it diverges, or
    after the last iteration. Each seed has a generator of its own, from which the evaluation sample, the first weights
    (independent N(0, initial²)) and the batches are drawn in this order, so that the runs of one seed see the same
    coordinates in all families, whatever other runs there are.

    Returns: the runs, those of the first family first.

    Raises: ConfigError for families of different dimensions, or a network with another number of classes.
    """
    options = DescentOptions() if options is None else options
    if not families or not seeds:
        raise ConfigError("no runs were asked for; give at least one family of subspaces and one seed")
    spaces = stack(families)
    if spaces.classes != len(network.second):
        raise ConfigError(f"the data have {spaces.classes} classes, but the network {len(network.second)}")
    return _Descent(network, spaces, seeds, options).follow()


class _Descent:
    """The runs that are still on their way; the first dimension of all tensors is the run."""

    def __init__(
        self, network: TwoLayerNetwork, spaces: Subspaces, seeds: Sequence[int], options: DescentOptions
    ) -> None:
        self.network, self.options, self.dims = network, options, spaces.dims
        count = len(spaces.bases)
        self.runs = [Run(family, seed) for family in range(count) for seed in seeds]
        self.source = torch.arange(len(seeds)).repeat(count)  # which seed each run draws from
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.spaces = Subspaces(spaces.bases.repeat_interleave(len(seeds), 0), spaces.dims)
        self.evaluation = self.spaces.embed(self.draw(options.evaluation, 1)[self.source, 0])
        shape = (spaces.ambient, network.second.shape[1])
        first = [options.initial * torch.randn(shape, generator=generator) for generator in self.generators]
        self.weights = torch.stack(first)[self.source]
        self.labels = self.spaces.labels(options.batch)
        self.evaluation_labels = self.spaces.labels(options.evaluation)

    def draw(self, per_class: int, batches: int) -> Tensor:
        """Coordinates for every seed, [S, batches, n, per_class, p]; seeds without a run draw nothing."""
        used = set(self.source.tolist())
        shape = (batches, self.spaces.classes, per_class, self.spaces.bases.shape[-1])
        drawn = [
            draw(self.dims, per_class, generator, self.options.radius, (batches,)) if i in used else torch.empty(shape)
            for i, generator in enumerate(self.generators)
        ]
        return torch.stack(drawn)

    def follow(self) -> list[Run]:
        everyone = list(self.runs)
        look, compare = 0, sorted(set(self.options.checkpoints), reverse=True)
        for iteration in range(self.options.iterations + 1):
            last = iteration == self.options.iterations
            if iteration == look or last:
                look += max(1, iteration // SPACING)
                checkpoint = bool(compare) and iteration >= compare[-1]
                while compare and iteration >= compare[-1]:
                    compare.pop()
                self.record(iteration, last, checkpoint)
            if last or not self.runs:
                break
            if iteration % BLOCK == 0:
                block = self.draw(self.options.batch, BLOCK)
            points = self.spaces.embed(block[self.source, iteration % BLOCK])
            self.weights -= self.options.eta * self.network.coarse_gradient(self.weights, points, self.labels)
        return everyone

    def record(self, iteration: int, last: bool, compare: bool) -> None:
        loss, share, gradient, largest = self.evaluate()
        norms = gradient.flatten(1).norm(dim=1)
        finite = (loss.isfinite() & norms.isfinite() & self.weights.isfinite().all(-1).all(-1)).tolist()
        on_the_way = []
        for i, run in enumerate(self.runs):
            run.weights = self.weights[i].clone()
            run.diverged = not finite[i]
            if finite[i]:
                run.iterations.append(iteration)
                run.loss.append(float(loss[i]))
                run.accuracy.append(float(share[i]))
                run.coarse_gradient_norm.append(float(norms[i]))
                run.largest_preactivation = max(run.largest_preactivation, float(largest[i]))
                if loss[i] == 0:
                    run.iterations_to_zero = iteration
                elif compare:
                    self.compare(run, i, iteration)
            on_the_way.append(finite[i] and run.iterations_to_zero is None and not last)
        if not all(on_the_way):
            self.keep(torch.tensor(on_the_way))

    def evaluate(self) -> list[Tensor]:
        """Loss, accuracy, coarse gradient and largest h of each run; few at a time: their h fit in a cache."""
        chunk = max(1, CACHED // (self.evaluation.shape[1] * self.weights.shape[2]))
        parts = [
            self.network.evaluate(self.weights[i : i + chunk], self.evaluation[i : i + chunk], self.evaluation_labels)
            for i in range(0, len(self.weights), chunk)
        ]
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    def compare(self, run: Run, i: int, iteration: int) -> None:
        """Append the cosine between the coarse gradient and the population gradient, where both are other than 0.

        The sample belongs to the seed and the iteration, not to the run's generator, which looking must not disturb.
        """
        generator = torch.Generator().manual_seed(run.seed * 1_000_003 + iteration + 1)
        spaces = Subspaces(self.spaces.bases[i], self.dims)
        points, labels = spaces.sample(self.options.sample, generator, self.options.radius)
        coarse = self.network.coarse_gradient(self.weights[i], points, labels).flatten()
        population = self.network.population_gradient(self.weights[i], points, labels).flatten()
        norms = float(coarse.norm() * population.norm())
        if norms > 0:
            run.cosines.append((iteration, float(coarse @ population) / norms))

    def keep(self, which: Tensor) -> None:
        self.runs = [run for run, stays in zip(self.runs, which.tolist(), strict=True) if stays]
        self.source, self.weights, self.evaluation = self.source[which], self.weights[which], self.evaluation[which]
        self.spaces = Subspaces(self.spaces.bases[which], self.dims)
