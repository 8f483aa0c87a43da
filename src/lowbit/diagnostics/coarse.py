"""The experiment behind `lowbit coarse`: does coarse gradient descent find a perfect classifier?

[long2021coarse] proves: yes, for classes in orthogonal subspaces and an admissible estimator. Its experiment takes two
planes at an angle, to see how far that goes.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit._folders import new_folder
from lowbit.diagnostics.coarse_plots import plot_angles, plot_curves, plot_gradients
from lowbit.estimators import build_estimator
from lowbit.quantizers import build_quantizer
from lowbit.theory import DescentOptions, Run, Subspaces, TwoLayerNetwork, angled_subspaces, descend, second_layer
from lowbit.theory.subspaces import RADIUS

ESTIMATORS = ("relu", "clipped", "log-tailed", "reverse-exponential", "identity")
"""The estimators in the pictures: four admissible ones and the counter-example."""

ANGLES = (15.0, 30.0, 45.0, 60.0, 75.0, 90.0)
"""The angles in the picture of iterations against the angle."""


FRESH = 50_000
"""Points of each class that no run has seen, on which each is judged in the end."""


@dataclass(frozen=True)
class CoarseExperiment:
    """Classes in linear subspaces at an angle, a two-linear-layer network, and an estimator to train it with."""

    estimator: str = "relu"
    """Estimator g' in the place of the staircase's derivative."""
    bits: int = 4
    """Bits of the activations, b. With 1 bit zero loss is out of reach: the outputs for x and −x add up to the same
    number for every class, if no h is exactly 0."""
    theta: float = 60.0
    """Angle between the subspaces of consecutive classes in degrees, up to 90."""
    seeds: int = 5
    """Number of runs, with the seeds 0, 1, 2, …"""
    classes: int = 2
    """Number of classes, n."""
    dims: int = 2
    """Dimension of each class's subspace."""
    units: int = 24
    """Hidden units, k, shared equally by the classes."""
    eta: float = DescentOptions.eta
    """Step size."""
    iterations: int = DescentOptions.iterations
    """The most steps of a run, which ends at zero loss."""
    batch: int = DescentOptions.batch
    """Fresh points of each class in each step."""
    radius: tuple[float, float] = RADIUS
    """The least and the largest norm of a point, in steps of the staircase divided by a weight."""
    quantizer: str = "staircase"
    """Quantizer whose staircase is the activation function."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds is {self.seeds}, expected at least 1 run")

    def subspaces(self, theta: float) -> Subspaces:
        """The classes' subspaces at the angle theta. Raises: ConfigError."""
        return angled_subspaces(theta, self.dims, self.classes)

    def network(self, estimator: str) -> TwoLayerNetwork:
        """The network with an estimator of that name. Raises: UnknownNameError, ConfigError."""
        second = second_layer(self.classes, self.units)
        return TwoLayerNetwork(second, build_quantizer(self.quantizer, self.bits), build_estimator(estimator))

    def options(self, checkpoints: tuple[int, ...] = ()) -> DescentOptions:
        """The options of the descent. Raises: ConfigError."""
        return DescentOptions(self.eta, self.iterations, self.batch, self.radius, checkpoints=checkpoints)


@dataclass(frozen=True)
class CoarseRun:
    """How one seed fared. What a run that diverged at once did not reach is None."""

    seed: int
    iterations_to_zero: int | None
    """The first iteration looked at where the loss of every point of the evaluation sample is exactly 0; None: never.
    Later than the true first one by 5 % at most (`lowbit.theory.descent.SPACING`)."""
    iterations: int
    """The last iteration looked at."""
    final_loss: float | None
    final_accuracy: float | None
    fresh_loss: float | None
    """At the end, on 50,000 new points of each class: zero loss on the evaluation sample, 2,048 points of each, leaves
    room for rare points where the right class is not 1 ahead."""
    fresh_accuracy: float | None
    coarse_gradient_norm: float | None
    """At the end."""
    initial_coarse_gradient_norm: float | None
    cosine: float | None
    """Between coarse gradient and finite differences of the population loss: the mean over the checkpoints with a
    positive loss; None where there is none. Differences are rough where few points have a positive loss (see
    `TwoLayerNetwork.population_gradient`), which lowers the mean: compare `cosine_start`."""
    cosine_start: float | None
    """The same before the first step."""
    largest_preactivation: float | None
    """The largest h met."""
    diverged: bool


@dataclass(frozen=True)
class CoarseSummary:
    """All seeds together."""

    reached_zero: int
    """How many of the seeds reached zero loss."""
    iterations_to_zero_mean: float | None
    """Over the seeds that reached zero loss; None: no seed did."""
    iterations_to_zero_std: float | None
    """Sample standard deviation over them; None for fewer than two."""
    final_loss_mean: float | None
    final_accuracy_mean: float | None
    final_accuracy_min: float | None
    final_accuracy_max: float | None
    cosine_mean: float | None


@dataclass(frozen=True)
class CoarseReport:
    """What `lowbit coarse` answers."""

    estimator: str
    quantizer: str
    bits: int
    theta: float
    classes: int
    dims: int
    units: int
    eta: float
    iterations: int
    batch: int
    radius: tuple[float, float]
    seeds: int
    saturation: int
    """The highest code: estimators that differ only above it coincide while pre-activations stay below."""
    runs: list[CoarseRun]
    summary: CoarseSummary
    run: str | None
    """The folder with the pictures; None where none were asked for."""
    plots: list[str]

    def render(self) -> str:
        """The report as a table for people."""
        lines = [
            f"{self.estimator} on {self.quantizer}, {self.bits} bits; {self.classes} classes in subspaces of dimension "
            f"{self.dims} at {self.theta:g} degrees; {self.units} units, step size {self.eta:g}",
            f"{'seed':>4} {'zero loss after':>16} {'loss':>10} {'new points':>10} {'accuracy':>9} {'gradient':>21} "
            f"{'cosine':>8}",
        ]
        for run in self.runs:
            zero = "diverged" if run.diverged else "never" if run.iterations_to_zero is None else run.iterations_to_zero
            gradient = f"{_text(run.initial_coarse_gradient_norm, '.3g')} to {_text(run.coarse_gradient_norm, '.3g')}"
            lines.append(
                f"{run.seed:>4} {zero:>16} {_text(run.final_loss, '.4g'):>10} "
                f"{_text(run.fresh_loss, '.2g'):>10} {_text(run.final_accuracy, '.2%'):>9} "
                f"{gradient:>21} {_text(run.cosine, '.3f'):>8}"
            )
        summary, spread = self.summary, ""
        if summary.iterations_to_zero_mean is not None:
            spread = f" after {summary.iterations_to_zero_mean:.0f}"
            if summary.iterations_to_zero_std is not None:
                spread += f" ± {summary.iterations_to_zero_std:.0f}"
            spread += " iterations"
        lines.append(f"zero loss in {summary.reached_zero} of {self.seeds} runs{spread}")
        largest = max((run.largest_preactivation or 0.0 for run in self.runs), default=0.0)
        lines.append(f"largest pre-activation {largest:.3g}; the staircase saturates at {self.saturation}")
        if self.plots:
            lines.append(f"written: {', '.join(self.plots)}")
        return "\n".join(lines)


def run_coarse(experiment: CoarseExperiment, plot: bool = False, out: Path | None = None) -> CoarseReport:
    """Train the two-linear-layer network by coarse gradient descent, once for each seed.

    Args:
        experiment: what to do.
        plot: also run every estimator of the pictures at every angle, and draw `curves.png` (loss and accuracy against
            iterations), `gradients.png` (the norm of the coarse gradient) and `angles.png` (iterations to zero loss
            against the angle), with `coarse.json` (the report and all recorded values). Without it nothing is written.
        out: folder for them; None makes a new one under runs/.

    Raises:
        UnknownNameError, ConfigError: an option out of range, an estimator that is not defined for the quantizer, or a
            folder that is in use.
    """
    if out is not None and not plot:
        raise ConfigError(f"--out '{out}' is for the pictures; add --plot")
    network, space = experiment.network(experiment.estimator), experiment.subspaces(experiment.theta)
    options, seeds = experiment.options(DescentOptions.checkpoints), range(experiment.seeds)
    folder, sweep = None, None
    if plot:
        networks = {name: experiment.network(name) for name in _drawn(experiment.estimator)}
        folder = new_folder(out, f"coarse-{experiment.estimator.partition('(')[0]}")
        sweep = _sweep(experiment, networks)
    fresh = space.sample(FRESH, torch.Generator().manual_seed(-1), experiment.radius)
    runs = [_run(run, network, *fresh) for run in descend(network, [space], seeds, options)]
    shared = {name: value for name, value in vars(experiment).items() if name in CoarseReport.__dataclass_fields__}
    report = CoarseReport(
        **shared,
        saturation=network.quantizer.grid.high,
        runs=runs,
        summary=_summary(runs),
        run=None if folder is None else str(folder),
        plots=[] if folder is None else [str(folder / f"{name}.png") for name in ("curves", "gradients", "angles")],
    )
    if folder is not None and sweep is not None:
        _draw(folder, report, sweep)
    return report


Sweep = Mapping[str, Mapping[float, Sequence[Run]]]


def _drawn(estimator: str) -> tuple[str, ...]:
    return ESTIMATORS if estimator in ESTIMATORS else (estimator, *ESTIMATORS)


def _sweep(experiment: CoarseExperiment, networks: Mapping[str, TwoLayerNetwork]) -> Sweep:
    """All runs of each estimator, by angle."""
    angles = sorted({*ANGLES, experiment.theta})
    spaces = [experiment.subspaces(angle) for angle in angles]
    found: dict[str, dict[float, list[Run]]] = {}
    for name, network in networks.items():
        runs = descend(network, spaces, range(experiment.seeds), experiment.options())
        found[name] = {angle: [run for run in runs if angles[run.family] == angle] for angle in angles}
    return found


def _draw(folder: Path, report: CoarseReport, sweep: Sweep) -> None:
    here = {name: by_angle[report.theta] for name, by_angle in sweep.items()}
    plot_curves(folder / "curves.png", report, here)
    plot_gradients(folder / "gradients.png", report, here)
    plot_angles(folder / "angles.png", report, sweep)
    kept = ("seed", "iterations_to_zero", "iterations", "loss", "accuracy", "coarse_gradient_norm", "diverged")
    records = {
        name: {
            f"{angle:g}": [{key: getattr(run, key) for key in kept} for run in runs] for angle, runs in angles.items()
        }
        for name, angles in sweep.items()
    }
    text = json.dumps({**asdict(report), "records": records}, indent=1)
    (folder / "coarse.json").write_text(text + "\n", encoding="utf-8")


def _run(run: Run, network: TwoLayerNetwork, points: Tensor, labels: Tensor) -> CoarseRun:
    looked = bool(run.iterations)
    fresh = None
    if run.weights is not None and not run.diverged:
        fresh = network.evaluate(run.weights, points, labels)
    return CoarseRun(
        seed=run.seed,
        iterations_to_zero=run.iterations_to_zero,
        iterations=run.iterations[-1] if looked else 0,
        final_loss=run.loss[-1] if looked else None,
        final_accuracy=run.accuracy[-1] if looked else None,
        fresh_loss=None if fresh is None else float(fresh[0]),
        fresh_accuracy=None if fresh is None else float(fresh[1]),
        coarse_gradient_norm=run.coarse_gradient_norm[-1] if looked else None,
        initial_coarse_gradient_norm=run.coarse_gradient_norm[0] if looked else None,
        cosine=_mean([cosine for _, cosine in run.cosines]),
        cosine_start=next((cosine for iteration, cosine in run.cosines if iteration == 0), None),
        largest_preactivation=run.largest_preactivation
        if looked and math.isfinite(run.largest_preactivation)
        else None,
        diverged=run.diverged,
    )


def _summary(runs: Sequence[CoarseRun]) -> CoarseSummary:
    zeros = [run.iterations_to_zero for run in runs if run.iterations_to_zero is not None]
    accuracies = [run.final_accuracy for run in runs if run.final_accuracy is not None]
    return CoarseSummary(
        reached_zero=len(zeros),
        iterations_to_zero_mean=_mean(zeros),
        iterations_to_zero_std=statistics.stdev(zeros) if len(zeros) > 1 else None,
        final_loss_mean=_mean([run.final_loss for run in runs if run.final_loss is not None]),
        final_accuracy_mean=_mean(accuracies),
        final_accuracy_min=min(accuracies, default=None),
        final_accuracy_max=max(accuracies, default=None),
        cosine_mean=_mean([run.cosine for run in runs if run.cosine is not None]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
