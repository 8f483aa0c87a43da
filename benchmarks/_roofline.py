"""The roofline: layers as dots under what the processor can do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.ceiling import Ceilings, products

LABELS = {
    "float32": "float32, fused multiply–add",
    "int8": "int8, dot products",
    "binary": "bits, xor and count",
    "binary_popcount": "bits, xor and vector popcount",
    "binary_shared": "bits, carries looked up (lowbit's way)",
}
COLOURS = ("#0b6e99", "#d1495b", "#3c8d40", "#8a5a9e")
MARKERS = ("o", "s", "^", "D")
WIDTH, HEIGHT = 0.71, 0.88
"""Of the axes, as shares of the picture's."""


def draw(layers: Sequence[dict[str, Any]], limits: Ceilings, path: Path, processor: str) -> None:
    """Write the picture: MAC per byte against GMAC/s, both logarithmic."""
    intensities = [layer["mac_per_byte"] for layer in layers]
    rates = [layer["gmac_per_s"] for layer in layers]
    peaks = products(limits)
    top = max(peaks.values())
    bottom = min(*rates, *peaks.values()) / 1.7
    left, right = min(*intensities, 8) / 1.5, max(intensities) * 3.2
    figure, axes = plt.subplots(figsize=(12, 6.6))
    figure.subplots_adjust(left=0.065, bottom=0.075, right=0.065 + WIDTH, top=0.075 + HEIGHT)
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top * 1.8))
    _ceilings(axes, peaks, limits["bandwidth"], left, right, top)
    _dots(axes, layers)
    axes.set_xlabel("multiply–accumulates per byte of bits read and written")
    axes.set_ylabel("GMAC/s")
    axes.set_title(f"{layers[0]['bits']}-bit layers, one thread, one image: {processor}", loc="left")
    axes.grid(which="major", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _ceilings(
    axes: Axes, peaks: dict[str, float], reads: dict[str, dict[str, float]], left: float, right: float, top: float
) -> None:
    for name, most in peaks.items():
        axes.axhline(most, color="#444444", linewidth=1.2)
        text = f"{LABELS.get(name, name)}: {most:,.0f}"
        axes.annotate(text, (right, most), (-4, 3), textcoords="offset points", ha="right", fontsize=9, color="#333333")
    for name, read in reads.items():
        x = np.array([left, top / read["gb_per_s"]])
        axes.plot(x, x * read["gb_per_s"], color="#999999", linewidth=1, linestyle="--")
        start = max(left * 1.08, axes.get_ylim()[0] * 1.25 / read["gb_per_s"])
        axes.annotate(
            f"{name} {read['gb_per_s']:.0f} GB/s",
            (start, start * read["gb_per_s"]),
            (-3, 4),
            textcoords="offset points",
            rotation=_slope(axes),
            rotation_mode="anchor",
            fontsize=8,
            color="#777777",
        )


def _slope(axes: Axes) -> float:
    """The angle at which a line of slope 1 is seen, in degrees."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    width, height = axes.get_figure(root=True).get_size_inches()  # type: ignore[union-attr]
    rise, run = HEIGHT * height / np.log(top / bottom), WIDTH * width / np.log(right / left)
    return float(np.degrees(np.arctan2(rise, run)))


def _dots(axes: Axes, layers: Sequence[dict[str, Any]]) -> None:
    """The dots, numbered, and beside the picture what the numbers stand for."""
    number, y = 0, 1.0
    for index, net in enumerate(dict.fromkeys(layer["net"] for layer in layers)):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.text(1.02, y, net, transform=axes.transAxes, color=colour, weight="bold", va="top", fontsize=10)
        y -= 0.038
        for layer in (layer for layer in layers if layer["net"] == net):
            number += 1
            place = layer["mac_per_byte"], layer["gmac_per_s"]
            axes.scatter(*place, s=150, color=colour, marker=marker, zorder=3, edgecolors="white", linewidths=0.8)
            axes.text(*place, str(number), color="white", fontsize=7, ha="center", va="center_baseline", zorder=4)
            text = f"{number:2d}  {layer['layer']}: {layer['gmac_per_s']:,.0f}"
            axes.text(1.02, y, text, transform=axes.transAxes, va="top", fontsize=8.5, color="#333333")
            y -= 0.034
        y -= 0.02
