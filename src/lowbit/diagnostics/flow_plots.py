"""The two pictures of `lowbit flow`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lowbit.diagnostics.flow import Decay, FlowReport

Array = NDArray[np.float64]

# Colours of Okabe and Ito that the colour-blind tell apart; in print the line styles do.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#767676"

LABELS = {
    "deviation": r"deviation $\Vert g(t) - \bar{g}\,\Vert$",
    "curvature": r"curvature $\Vert \mathrm{Ric}(g(t))\Vert$",
}


def plot_decay(path: Path, report: FlowReport, times: Array, series: Mapping[str, Array], decay: Decay) -> None:
    """Draw what decays on a logarithmic scale, with both fits and the stretch of time they were fitted to."""
    from matplotlib.figure import Figure  # half a second that nobody else waits for

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(*decay.window, color="#f0f0f0", zorder=0, label="fitted here")
    other = "curvature" if report.quantity == "deviation" else "deviation"
    if report.equation == "ricci":  # there the deviation is the point: it stays
        axes.plot(times, series[other], color=GREY, linestyle="-.", label=f"{LABELS[other]}: coordinates stay")
    label = f"exponential, rate {decay.rate:.4f} (linearised {report.linearised_rate:.4g})"
    axes.plot(times, decay.exponential, color=BLUE, label=f"{label}, $R^2$ = {_r2(decay.exponential_r2)}")
    label = f"power $(1 + \\lambda t)^{{-{decay.exponent:.2f}}}$"
    axes.plot(
        times,
        decay.fractional_power,
        color=VERMILION,
        linestyle="--",
        label=f"{label}, $R^2$ = {_r2(decay.fractional_power_r2)}",
    )
    values = series[report.quantity]
    axes.plot(times, values, "o", color="black", markersize=3, label=LABELS[report.quantity])
    axes.set_yscale("log")
    axes.set_ylim(values.min() / 2, 4 * max(values.max(), decay.exponential.max(), series["deviation"].max()))
    axes.set_xlim(0, times[-1])
    axes.set_xlabel("flow time $t$ (length²)")
    axes.set_ylabel(f"{LABELS[report.quantity]} in $L^2$")
    name = "Ricci–DeTurck flow" if report.equation == "deturck" else "Ricci flow"
    axes.set_title(
        f"{name}, {report.dim}-D torus, {report.grid}$^{report.dim}$ points, perturbation {report.perturbation:g}"
    )
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def plot_curvature(path: Path, snapshots: list[tuple[float, Array]], period: float, dim: int) -> None:
    """Draw the scalar curvature at several times, each on the scale of its own largest value, which its title gives.

    In three dimensions the middle slice is drawn.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 * len(snapshots) + 1, 3.2), layout="constrained")
    panels = figure.subplots(1, len(snapshots), sharey=True)
    for panel, (time, curvature) in zip(panels, snapshots, strict=True):
        largest = np.abs(curvature).max()
        image = panel.imshow(
            curvature.T / largest, origin="lower", extent=(0, period, 0, period), cmap="PuOr", vmin=-1, vmax=1,
            interpolation="bicubic",
        )  # fmt: skip
        panel.set_title(f"$t$ = {time:.3g}\nmax |$R$| = {largest:.2g}", fontsize="medium")
        panel.set_xlabel("$x_1$ (length)")
        panel.set_xticks([0, period / 2, period], ["0", f"{period / 2:.3g}", f"{period:.3g}"])
        panel.set_yticks([0, period / 2, period], ["0", f"{period / 2:.3g}", f"{period:.3g}"])
    panels[0].set_ylabel("$x_2$ (length)")
    if dim == 3:
        figure.suptitle(f"slice $x_3$ = {period / 2:.3g}", fontsize="medium")
    figure.colorbar(image, ax=panels, label="scalar curvature $R$ / max |$R$|", fraction=0.02, pad=0.01)
    figure.savefig(path, dpi=150)


def _r2(value: float) -> str:
    """Digits up to the first that is not a nine."""
    digits = 4
    while digits < 12 and float(f"{value:.{digits}f}") == 1:
        digits += 1
    return f"{value:.{digits}f}"
