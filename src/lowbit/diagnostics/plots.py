"""Pictures of a run, and of groups of runs beside each other."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit._errors import ConfigError, DataError
from lowbit.diagnostics.records import STEPS, read_epochs, read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

# Okabe and Ito's colours: told apart by colour-blind readers too. Their yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", ":", "-.")
_MOST_NAMES = 6  # layers that a legend can name; more of them get a colour bar
_DPI = 150


@dataclass(frozen=True)
class _Panel:
    """One set of axes with a figure of every layer.

    Args:
        key: name of the figure in the records.
        label: of the axis, with the unit.
        scale: factor on the figure, 100 for a share shown in percent.
        log: whether the axis is logarithmic.
        rule: a value to mark with a line, and what it means.
        limits: ends of the axis; by the figures where not given.
    """

    key: str
    label: str
    scale: float = 1.0
    log: bool = False
    rule: tuple[float, str] | None = None
    limits: tuple[float, float] | None = None


_WEIGHTS = (
    _Panel("flip_rate", "weights that changed level between two looks (%)", scale=100),
    _Panel("oscillation", "weights that turned back between two looks (%)", scale=100),
)
_GEOMETRY = (
    _Panel("correction", "correction ‖g⁻¹∂ − ∂‖ / ‖∂‖", log=True),
    _Panel("norm_squared", "largest ‖u‖² of a block", rule=(1.0, "g is positive definite below")),
    _Panel("dominance_margin", "dominance margin", rule=(0.0, "diagonally dominant above")),
    _Panel("ricci_n", "N (Eq. 35)", log=True),
    _Panel("pull", "pull of the regulariser ‖α ∂N‖ / ‖g⁻¹∂‖", log=True),
    _Panel("gated", "steps with a shut gate (%)", scale=100, limits=(-3, 103)),
)
_MISMATCH = (
    _Panel("mismatch_cosine", "cosine, estimator against differences", rule=(0.0, "unrelated"), limits=(-1.05, 1.05)),
)


def plot_run(run: Path, out: Path | None = None) -> list[Path]:
    """Draw what a run has logged, each picture only if there is something in it; returns the files.

    - `curves.png`: loss and accuracies against epochs;
    - `weights.png`: flip rate and oscillation of every layer against steps;
    - `geometry.png`: correction, ‖u‖², dominance margin, N, its pull and the share of shut gates of every layer against
      steps;
    - `mismatch.png`: the mismatch cosine of every layer against epochs.

    Args:
        run: the run folder.
        out: folder for the pictures; `plots` in the run folder by default.

    Raises: ConfigError when `run` is not the folder of a run, DataError when it has finished no epoch yet.
    """
    epochs = read_epochs(run)
    steps = [line for line in read_lines(run / STEPS) if "layers" in line]
    against_steps = ("step", steps) if steps else ("epoch", epochs)
    pictures = {
        "curves": _curves(epochs),
        "weights": _layer_panels(_WEIGHTS, *against_steps),
        "geometry": _layer_panels(_GEOMETRY, *against_steps),
        "mismatch": _layer_panels(_MISMATCH, "epoch", epochs),
    }
    folder = run / "plots" if out is None else out
    drawn = {folder / f"{name}.png": figure for name, figure in pictures.items() if figure is not None}
    for path, figure in drawn.items():
        figure.suptitle(run.resolve().name, fontsize=10)
        _save(figure, path)
    return list(drawn)


def compare(groups: Mapping[str, Sequence[Path]], metric: str, out: Path, last: int = 10) -> Path:
    """Draw one figure of several groups of runs: curves with bands on the left, bars of the end on the right.

    A curve is the mean over the runs of a group, as far as the shortest of them goes; its band reaches one standard
    deviation (n − 1) up and down. A bar is the mean over the runs of each one's mean over its `last` epochs, its
    whisker one standard deviation, its dots the runs.

    Args:
        groups: the run folders of each group, usually one for each seed, by the name to show.
        metric: a number in `metrics.jsonl`, for example `test_accuracy` or `flip_rate`.
        out: the PNG file to write.
        last: epochs that a bar averages over, 1 or more.

    Raises: ConfigError when a group is empty or a run lacks the metric, and as `plot_run`.
    """
    values = {name: [_values(run, metric) for run in runs] for name, runs in groups.items()}
    empty = [name for name, runs in values.items() if not runs]
    if empty or not values:
        raise ConfigError(f"compare: {', '.join(map(repr, empty)) or 'no group'} has no runs; give a run for each")
    share = metric.endswith("accuracy") or metric in ("flip_rate", "oscillation", "gated", "gated")
    factor, label = (100, f"{_words(metric)} (%)") if share else (1, _words(metric))
    figure = _figure(1, 2, width=10, height=4)
    curves, bars = figure.axes
    reached: list[float] = []
    for place, (name, runs) in enumerate(values.items()):
        colour = COLOURS[place % len(COLOURS)]
        style = _STYLES[place // len(COLOURS) % len(_STYLES)]
        table = [[factor * value for value in column] for column in zip(*runs, strict=False)]
        mean, spread = [statistics.fmean(c) for c in table], [_spread(c) for c in table]
        epochs = range(1, len(table) + 1)
        curves.plot(epochs, mean, label=name, color=colour, linestyle=style)
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        curves.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        ends = [factor * statistics.fmean(run[-last:]) for run in runs]
        mean_end, spread_end = statistics.fmean(ends), _spread(ends)
        bars.bar(place, mean_end, yerr=spread_end if len(ends) > 1 else None, color=colour, alpha=0.6, capsize=4)
        reached += [*ends, mean_end - spread_end, mean_end + spread_end]
        offsets = [place + 0.3 * ((i + 0.5) / len(ends) - 0.5) for i in range(len(ends))]
        bars.plot(offsets, ends, "o", color="black", markersize=3)
    _finish_comparison(figure, label, list(values), reached, last)
    _save(figure, out)
    return out


def _finish_comparison(figure: Figure, label: str, names: list[str], reached: list[float], last: int) -> None:
    curves, bars = figure.axes
    _dress(curves, "epoch", label)
    curves.legend(frameon=False, fontsize=8)
    _dress(bars, "", f"{label}, last {f'{last} epochs' if last > 1 else 'epoch'}")
    crowded = sum(map(len, names)) > 40
    bars.set_xticks(
        range(len(names)), names, fontsize=8, rotation=30 if crowded else 0, ha="right" if crowded else "center"
    )
    # Whiskers and dots must be seen: bars from 0 would hide a difference of a percent.
    low, high = min(reached), max(reached)
    room = 0.25 * (high - low) or abs(high) * 0.1 or 1.0
    bars.set_ylim(low - room, high + room)


def _values(run: Path, metric: str) -> list[float]:
    """The metric at every epoch of a run."""
    epochs = read_epochs(run)
    found = [record.get(metric) for record in epochs]
    if not all(isinstance(value, int | float) for value in found):
        names = [name for name, value in epochs[-1].items() if isinstance(value, int | float) and name != "epoch"]
        raise ConfigError(f"run '{run}' has no '{metric}' at every epoch; it has: {', '.join(names)}")
    return [float(value) for value in found if value is not None]


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _curves(epochs: Sequence[Record]) -> Figure:
    figure = _figure(1, 2, width=9, height=3.5)
    loss, accuracy = figure.axes
    mark = "o" if len(epochs) == 1 else ""
    numbers = [record["epoch"] for record in epochs]
    loss.plot(numbers, [record["loss"] for record in epochs], color=COLOURS[0], marker=mark)
    loss.set_yscale("log")
    _dress(loss, "epoch", "training loss (nats per image)")
    for name, colour, style in zip(("train", "val", "test"), COLOURS, ("--", ":", "-"), strict=False):
        values = [record.get(f"{name}_accuracy") for record in epochs]
        if any(value is not None for value in values):
            shown = [math.nan if value is None else 100 * value for value in values]
            label = {"train": "training", "val": "validation", "test": "test"}[name]
            accuracy.plot(numbers, shown, style, color=colour, marker=mark, label=label)
    _dress(accuracy, "epoch", "accuracy (%)")
    accuracy.legend(frameon=False)
    return figure


def _layer_panels(panels: Sequence[_Panel], against: str, records: Sequence[Record]) -> Figure | None:
    """One set of axes for each panel that the records have figures for; None without any."""
    layers = list(dict.fromkeys(name for record in records for name in record.get("layers", {})))
    series = {panel: _series(records, layers, panel, against) for panel in panels}
    shown = [panel for panel in panels if series[panel]]
    if not shown:
        return None
    columns = min(len(shown), 3)
    rows = math.ceil(len(shown) / columns)
    figure = _figure(
        rows, columns, width=1.2 + 4 * columns + (1 if len(layers) > _MOST_NAMES else 0), height=3.3 * rows
    )
    colours = _depth_colours(len(layers))
    for axes, panel in zip(figure.axes, shown, strict=False):
        for name, (xs, ys) in series[panel].items():
            mark = "o" if len(xs) == 1 else ""
            axes.plot(xs, ys, color=colours[layers.index(name)], linewidth=1, marker=mark, markersize=3, label=name)
        if panel.log:
            axes.set_yscale("log")
        if panel.limits is not None:
            axes.set_ylim(panel.limits)
        if panel.rule is not None:
            _mark(axes, *panel.rule)
        _dress(axes, against, panel.label)
    for axes in figure.axes[len(shown) :]:
        axes.remove()
    _name_layers(figure, layers)
    return figure


def _series(
    records: Sequence[Record], layers: Sequence[str], panel: _Panel, against: str
) -> dict[str, tuple[list[float], list[float]]]:
    """What a panel shows of each layer that has it: positions and values, zeros left out of a logarithmic axis."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for layer in layers:
        rows = [(record[against], record.get("layers", {}).get(layer, {}).get(panel.key)) for record in records]
        kept = [(x, panel.scale * y) for x, y in rows if y is not None and (y > 0 or not panel.log)]
        if kept:
            found[layer] = [x for x, _ in kept], [y for _, y in kept]
    return found


def _depth_colours(count: int) -> list[Any]:
    """A colour for each layer, from dark at the input to light at the output."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * i / max(count - 1, 1)) for i in range(count)]


def _name_layers(figure: Figure, layers: Sequence[str]) -> None:
    """A legend where it is short, else a colour bar with the names of some layers."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    if len(layers) <= _MOST_NAMES:
        lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        shown = [name for name in layers if name in lines]
        figure.legend(
            [lines[name] for name in shown],
            shown,
            loc="outside right center",
            frameon=False,
            fontsize=8,
            title="layer",
            title_fontsize=9,
        )
        return
    norm = BoundaryNorm(range(len(layers) + 1), len(layers))
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(_depth_colours(len(layers)))), ax=figure.axes, pad=0.01)
    every = math.ceil(len(layers) / 12)
    named = sorted({*range(0, len(layers) - every // 2, every), len(layers) - 1})
    bar.set_ticks([i + 0.5 for i in named], labels=[layers[i] for i in named], fontsize=7)
    bar.ax.tick_params(which="both", length=0)
    bar.ax.invert_yaxis()
    bar.set_label("layer, from input to output", fontsize=8)


def _mark(axes: Axes, value: float, meaning: str) -> None:
    """A line across the axes where `value` lies, with a word on it."""
    axes.axhline(value, color="0.4", linewidth=0.8, linestyle="--")
    axes.text(
        0.99,
        value,
        meaning,
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=7,
        color="0.3",
        bbox={"color": "white", "alpha": 0.7, "pad": 0.5},
    )


def _figure(rows: int, columns: int, width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: nothing global changes, and no display is needed
    figure.subplots(rows, columns, squeeze=False)
    return figure


def _dress(axes: Axes, x: str, y: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if x in ("epoch", "step"):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=_DPI)
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error}; choose another folder") from None


def _words(metric: str) -> str:
    return metric.replace("_", " ")
