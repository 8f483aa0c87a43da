"""The picture of `lowbit repel`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.diagnostics.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lowbit.diagnostics.repulsion import RepulsionReport


def plot_repulsion(path: Path, report: RepulsionReport, title: str) -> None:
    """Draw the loss against steps for every estimator: as descent sees it, and in evaluation mode.

    Args:
        path: the PNG file to write.
        report: what to draw.
        title: what was looked at.
    """
    from matplotlib.figure import Figure  # half a second that nobody else waits for

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    seen, evaluated = figure.subplots(1, 2)
    # The control black and thick, below the others: where they stay with it, they cover it.
    for place, walk in enumerate(report.walks):
        colour, width = ("black", 3.0) if walk.own else (COLOURS[(place - 1) % (len(COLOURS) - 1)], 1.3)
        label = f"{walk.estimator} (own)" if walk.own else walk.estimator
        if walk.diverged is not None:
            label += f", diverged by step {walk.diverged}"
        seen.plot(walk.steps[1:], walk.batch_losses, color=colour, linewidth=width, marker=".", markersize=4)
        evaluated.plot(walk.steps, walk.losses, color=colour, linewidth=width, marker=".", markersize=4, label=label)
    _dress(seen, "the batches between looks", "training mode, statistics of each batch")
    _dress(evaluated, f"{report.images:,} training images", "evaluation mode, running statistics")
    for axes in (seen, evaluated):
        axes.set_xlim(0, report.steps)
    figure.legend(loc="outside lower center", ncols=min(len(report.walks), 5), frameon=False, fontsize=8)
    settings = f"rate {report.lr:g}, momentum {report.momentum:g}, batches of {report.batch_size}"
    figure.suptitle(f"{title}: descent from the minimum, {settings}", fontsize=10)
    figure.savefig(path, dpi=150)


def _dress(axes: Axes, over: str, mode: str) -> None:
    axes.set_yscale("log")
    axes.set_title(mode, fontsize=9)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel(f"mean loss of {over}", fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(which="major", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
