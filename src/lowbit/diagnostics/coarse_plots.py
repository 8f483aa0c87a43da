"""The three pictures of `lowbit coarse`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lowbit.theory import Run

if TYPE_CHECKING:
    from lowbit.diagnostics.coarse import CoarseReport

Array = NDArray[np.float64]

# Colours of Okabe and Ito that the colour-blind tell apart; in print the line styles and markers do. Curves that
# coincide, as those of estimators that differ only where the staircase saturates, show through each other's gaps.
STYLES: tuple[tuple[str, str | tuple[int, tuple[int, ...]], str], ...] = (
    ("#0072B2", "-", "o"),
    ("#E69F00", (0, (5, 5)), "s"),
    ("#009E73", (0, (2, 4)), "^"),
    ("#CC79A7", "-.", "D"),
    ("#D55E00", "--", "x"),
    ("#56B4E9", ":", "v"),
)

FLOOR = 0.3
"""Zeros are drawn at this share of the smallest positive mean over seeds that there could be."""


def plot_curves(path: Path, report: CoarseReport, runs: Mapping[str, Sequence[Run]]) -> None:
    """Draw loss and accuracy against iterations: the mean over the seeds in bold, each seed thin."""
    from matplotlib.figure import Figure  # half a second that nobody else waits for

    figure = Figure(figsize=(7, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _curves(upper, runs, "loss")
    upper.set_ylabel("hinge loss")
    upper.set_title(_title(report))
    _curves(lower, runs, "accuracy")
    lower.axhline(1 / report.classes, color="#767676", linewidth=0.8, zorder=0)
    lower.annotate("chance", (1, 1 / report.classes), (-4, 3), ("axes fraction", "data"), "offset points", ha="right")
    lower.set_ylim(0, 1.03)
    lower.set_ylabel("accuracy")
    lower.set_xlabel("iteration + 1")
    lower.legend(frameon=False, fontsize="small", loc="lower right", bbox_to_anchor=(1, 0.02))
    figure.savefig(path, dpi=150)


def plot_gradients(path: Path, report: CoarseReport, runs: Mapping[str, Sequence[Run]]) -> None:
    """Draw the norm of the coarse gradient against iterations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    _curves(axes, runs, "coarse_gradient_norm")
    axes.set_ylabel("norm of the coarse gradient")
    axes.set_xlabel("iteration + 1")
    axes.set_title(_title(report))
    axes.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 0.1))
    figure.savefig(path, dpi=150)


def plot_angles(path: Path, report: CoarseReport, sweep: Mapping[str, Mapping[float, Sequence[Run]]]) -> None:
    """Draw iterations to zero loss against the angle, mean ± standard deviation over the seeds that reached it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, ((name, by_angle), (colour, style, marker)) in enumerate(_styled(sweep)):
        shift = 0.7 * (place - (len(sweep) - 1) / 2)  # side by side, where they would hide each other
        found = {angle: [run.iterations_to_zero for run in runs] for angle, runs in by_angle.items()}
        reached = {a: np.array([z for z in zeros if z is not None], float) for a, zeros in found.items()}
        angles = [angle for angle in found if len(reached[angle])]
        means = np.array([reached[angle].mean() for angle in angles])
        stds = np.array([reached[angle].std(ddof=1) if len(reached[angle]) > 1 else 0.0 for angle in angles])
        missed = sum(zero is None for zeros in found.values() for zero in zeros)
        label = f"{name} ({missed} of {sum(map(len, found.values()))} runs never)" if missed else name
        where = np.array(angles) + shift
        # On a logarithmic axis a bar to 0 or below has no end; it stops at a third of the mean.
        bars = np.stack([np.minimum(stds, means * 2 / 3), stds]) if angles else None
        axes.errorbar(
            where, means, bars, color=colour, linestyle=style, marker=marker, markersize=5, capsize=2.5, label=label
        )
        never = [angle + shift for angle in found if not len(reached[angle])]
        axes.plot(
            never, [1.3 * report.iterations] * len(never), color=colour, marker=marker, linestyle="", markersize=7
        )
    axes.axhline(report.iterations, color="#767676", linewidth=0.8, zorder=0)
    axes.annotate(
        f"above: no seed reached zero loss in {report.iterations:,} iterations",
        (0, report.iterations),
        (4, -11),
        ("axes fraction", "data"),
        "offset points",
        fontsize="small",
    )
    axes.set_yscale("log")
    axes.set_ylim(top=2 * report.iterations)
    axes.set_xticks(sorted({angle for by_angle in sweep.values() for angle in by_angle}))
    axes.set_xlabel("angle between the subspaces (degrees)")
    axes.set_ylabel("iterations to zero loss, mean ± std")
    axes.set_title(_title(report, angle=False))
    axes.grid(which="major", axis="y", color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False, fontsize="small", loc="lower left")
    figure.savefig(path, dpi=150)


def _curves(axes: Any, runs: Mapping[str, Sequence[Run]], quantity: str) -> None:
    """Each seed thin, their mean bold; a run that has ended keeps its last value. Losses and norms are logarithmic."""
    logarithmic = quantity != "accuracy"
    values = [value for of in runs.values() for run in of for value in getattr(run, quantity)]
    seeds = max(map(len, runs.values()))
    floor = FLOOR * min((value for value in values if value > 0), default=1.0) / seeds
    for (name, of), (colour, style, _) in _styled(runs):
        of = [run for run in of if run.iterations]
        if not of:  # every seed diverged at once
            continue
        times = np.array(sorted({iteration for run in of for iteration in run.iterations}))
        lines = np.stack([_held(times, run, quantity) for run in of])
        for run in of:
            line = np.array(getattr(run, quantity))
            line = np.maximum(line, floor) if logarithmic else line
            axes.plot(1 + np.array(run.iterations), line, color=colour, linewidth=0.5, alpha=0.4)
        mean = np.maximum(lines.mean(0), floor) if logarithmic else lines.mean(0)
        axes.plot(1 + times, mean, color=colour, linestyle=style, linewidth=2, label=name)
    axes.set_xscale("log")
    if logarithmic:
        axes.set_yscale("log")
        axes.axhline(floor, color="#767676", linewidth=0.8, zorder=0)
        axes.annotate("exactly 0", (0, floor), (4, 3), ("axes fraction", "data"), "offset points", fontsize="small")
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _held(times: NDArray[np.int64], run: Run, quantity: str) -> Array:
    last_looked = np.searchsorted(run.iterations, times, side="right") - 1
    return np.array(getattr(run, quantity), dtype=np.float64)[last_looked]


def _styled(members: Mapping[str, Any]) -> Iterator[tuple[tuple[str, Any], tuple[str, Any, str]]]:
    return zip(members.items(), STYLES, strict=False)


def _title(report: CoarseReport, angle: bool = True) -> str:
    where = f" at {report.theta:g}°" if angle else ""
    return (
        f"{report.classes} classes in subspaces of dimension {report.dims}{where}, {report.bits} bits, "
        f"{report.units} units, {report.seeds} seeds"
    )
