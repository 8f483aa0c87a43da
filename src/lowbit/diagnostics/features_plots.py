"""The picture of `lowbit features`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lowbit.diagnostics.features import ClassSubspace, FeatureReport

MOST_CLASSES = 12
"""The most classes that get names in a legend and numbers in the heat maps."""


def plot_features(path: Path, report: FeatureReport, pixels: FeatureReport | None, title: str) -> None:
    """Draw the singular values of each class, and the smallest and mean principal angles of each pair of classes.

    The singular values are divided by the root of the class's energy, so that their squares are shares of it.

    Args:
        path: the PNG file to write.
        report: what to draw.
        pixels: the same of the images themselves, whose singular values are drawn in grey.
        title: what was looked at.
    """
    from matplotlib.figure import Figure  # half a second that nobody else waits for

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    values, smallest, mean = figure.subplots(1, 3)
    _singular_values(values, report, pixels)
    names = [subspace.name for subspace in report.classes]
    shapes = sorted(set(report.dimensions))
    span = f"{shapes[0]}" if len(shapes) == 1 else f"{shapes[0]} to {shapes[-1]}"
    _heat(figure, smallest, report.smallest_angle, names, f"smallest principal angle, subspaces of {span} dimensions")
    _heat(figure, mean, report.mean_angle, names, "mean principal angle")
    figure.suptitle(f"{title}: input of '{report.layer}', {report.images:,} training images", fontsize=10)
    figure.savefig(path, dpi=150)


def _singular_values(axes: Axes, report: FeatureReport, pixels: FeatureReport | None) -> None:
    from matplotlib import colormaps

    for i, subspace in enumerate(pixels.classes if pixels else ()):
        axes.plot(*_shares(subspace), color="0.75", linewidth=0.6, label="" if i else "pixels")
    count = len(report.classes)
    colours = [colormaps["tab10"](i) if count <= 10 else colormaps["viridis"](0.9 * i / count) for i in range(count)]
    for subspace, colour in zip(report.classes, colours, strict=True):
        numbers, shares = _shares(subspace)
        label = f"{subspace.name} ({subspace.dimension_90}, {subspace.dimension_95})"
        axes.plot(numbers, shares, color=colour, linewidth=1, label=label)
        for dimension, mark in ((subspace.dimension_90, "o"), (subspace.dimension_95, "s")):
            axes.plot(dimension, shares[dimension - 1], mark, color=colour, markersize=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("$k$", fontsize=9)
    axes.set_ylabel(r"singular values $\sigma_k\, /\, (\sum_j \sigma_j^2)^{1/2}$", fontsize=9)
    axes.set_ylim(3e-3, 1.3)
    axes.set_title("features by class; ● 90 %, ■ 95 % of the energy", fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(which="major", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if count <= MOST_CLASSES:
        axes.legend(frameon=False, fontsize=7, title="class (dimensions)", title_fontsize=8, loc="lower left")


def _shares(subspace: ClassSubspace) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """k = 1, 2, … and the singular values over the root of the energy."""
    values = np.array(subspace.singular_values)
    return np.arange(1, len(values) + 1), values / np.linalg.norm(values)


def _heat(figure: Figure, axes: Axes, angles: list[list[float]], names: list[str], title: str) -> None:
    table = np.array(angles)
    hidden = np.where(np.eye(len(table), dtype=bool), np.nan, table)  # a class against itself says nothing
    image = axes.imshow(hidden, cmap="viridis", vmin=0, vmax=90)
    axes.set_title(title, fontsize=9)
    axes.tick_params(length=0, labelsize=8)
    if len(names) <= MOST_CLASSES:
        long = max(map(len, names)) > 3
        axes.set_xticks(range(len(names)), names, rotation=45 if long else 0, ha="right" if long else "center")
        axes.set_yticks(range(len(names)), names)
        for i, j in zip(*np.nonzero(~np.isnan(hidden)), strict=True):
            colour = "white" if hidden[i, j] < 55 else "black"
            axes.text(j, i, f"{hidden[i, j]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, label="degrees", fraction=0.046, pad=0.02, ticks=[0, 30, 60, 90])
