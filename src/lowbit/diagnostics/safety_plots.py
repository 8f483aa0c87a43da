"""The picture of `lowbit check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lowbit.theory.outcomes import Curve
from lowbit.theory.safety import SafetyReport

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#767676"
SMALLEST = 1e-6
"""Losses below count as 0."""

COLOURS = {"safe": "#009E73", "conditional": "#E69F00", "unsafe": VERMILION}


def plot_safety(path: Path, report: SafetyReport) -> None:
    """Draw the surrogate over the staircase, and the losses of the descents that were run."""
    from matplotlib.figure import Figure  # half a second that nobody else waits for

    subspaces, gaussian = report.problems
    panels = [_surrogate]
    panels += [lambda axes, report: _losses(axes, subspaces.curves, "subspace classification", "hinge loss")] * bool(
        subspaces.curves
    )
    panels.append(
        lambda axes, report: _losses(axes, gaussian.curves, "Gaussian problem, random starts", "loss / scale")
    )
    if report.at_minimum.curves:
        title = "Gaussian problem, beside a local minimum"
        panels.append(lambda axes, report: _losses(axes, report.at_minimum.curves, title, "loss / that of the minimum"))
    figure = Figure(figsize=(4.2 * len(panels), 3.9), layout="constrained")
    for axes, draw in zip(figure.subplots(1, len(panels)), panels, strict=True):
        draw(axes, report)
    bits = f"{report.bits} bit{'s' * (report.bits > 1)}"
    figure.suptitle(
        f"{report.estimator} on {report.quantizer}, {bits}: {report.verdict}",
        color=COLOURS[report.verdict],
        weight="bold",
    )
    figure.savefig(path, dpi=150)


def _surrogate(axes: Any, report: SafetyReport) -> None:
    found = report.admissibility
    z, (least, largest) = found.z.numpy(), found.slope.numpy()
    axes.plot(z, largest, color=BLUE, label="surrogate $g'(z)$")
    if (least != largest).any():
        axes.fill_between(z, least, largest, color=BLUE, alpha=0.3, linewidth=0, label="depending on the gradient")
    for violation in found.violations:
        start, end = (found.low, 0.0) if violation.condition == "zero" else (violation.where, found.high)
        axes.axvspan(start, end, color=VERMILION, alpha=0.12, label=f"violates: {_NAMES[violation.condition]}")
    if found.applies:
        axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlim(found.low, found.high)
    axes.set_ylim(min(0.0, float(least.min())) - 0.08, max(1.0, float(np.nanmax(largest))) * 1.35)
    axes.set_xlabel("pre-activation $z$ (steps)")
    axes.set_ylabel("$g'(z)$")
    axes.set_title("in the admissible class?", fontsize="medium")
    axes.legend(frameon=False, fontsize="small", loc="upper left")


_NAMES = {"zero": "0 below 0", "lower bound": "$g' \\geq \\delta > 0$", "upper bound": "$g' \\leq \\bar{\\delta}$"}


def _losses(axes: Any, curves: tuple[Curve, ...], title: str, label: str) -> None:
    for iterations, losses in curves:
        # A loss of 0 has no logarithm: the curve ends in a point at its last positive value.
        ended = losses[-1] <= SMALLEST
        steps, values = np.array(iterations) + 1, np.array(losses)
        shown = values > SMALLEST
        axes.plot(steps[shown], values[shown], color=BLUE if ended else GREY, linewidth=0.9, alpha=0.7)
        if ended and shown.any():
            axes.plot(steps[shown][-1], values[shown][-1], "o", color=BLUE, markersize=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("iteration + 1")
    axes.set_ylabel(label)
    axes.set_title(title, fontsize="medium")
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
