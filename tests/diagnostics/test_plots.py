from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from lowbit import ConfigError, DataError
from lowbit.diagnostics import plots
from lowbit.diagnostics.plots import compare, plot_run
from lowbit.diagnostics.records import read_lines

PNG = b"\x89PNG\r\n"


def _figures(layers: int, step: int, **more: float | None) -> dict[str, dict[str, float | None]]:
    return {f"stage.{i}": {"flip_rate": 0.01 * (i + 1) / step, "oscillation": 0.0, **more} for i in range(layers)}


def _run(folder: Path, layers: int = 2, epochs: int = 3, final: float = 0.9, **more: float | None) -> Path:
    folder.mkdir(parents=True)
    lines, steps = [], []
    for epoch in range(1, epochs + 1):
        accuracy = final * epoch / epochs
        line: dict[str, Any] = {"epoch": epoch, "loss": 1 / epoch, "train_accuracy": None, "test_accuracy": accuracy}
        line |= {"val_accuracy": accuracy / 2, "flip_rate": 0.1}
        step = {"step": 20 * epoch, "epoch": epoch, "loss": 1 / epoch}
        if layers:
            line["layers"] = _figures(layers, epoch, mismatch_cosine=0.5, **more)
            step["layers"] = _figures(layers, epoch, **more)
        lines.append(line)
        steps.append(step)
    for name, rows in (("metrics.jsonl", lines), ("steps.jsonl", steps)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _names(paths: list[Path]) -> list[str]:
    assert all(path.read_bytes().startswith(PNG) for path in paths)
    return [path.name for path in paths]


GEOMETRY = {"correction": 0.1, "norm_squared": 0.9, "dominance_margin": -1.0, "ricci_n": 1e-6, "gated": 0.5}


def test_a_run_gets_the_pictures_it_has_figures_for(tmp_path: Path) -> None:
    full = _run(tmp_path / "full", **GEOMETRY)
    assert _names(plot_run(full)) == ["curves.png", "weights.png", "geometry.png", "mismatch.png"]
    assert {path.name for path in (full / "plots").iterdir()} == {
        "curves.png", "weights.png", "geometry.png", "mismatch.png",
    }  # fmt: skip
    bare = plot_run(_run(tmp_path / "bare", layers=0), out=tmp_path / "elsewhere" / "deep")
    assert _names(bare) == ["curves.png"]
    assert bare[0].parent == tmp_path / "elsewhere" / "deep"
    assert not (tmp_path / "bare" / "plots").exists()
    one = _run(tmp_path / "one", epochs=1)
    (one / "steps.jsonl").unlink()
    assert _names(plot_run(one)) == ["curves.png", "weights.png", "mismatch.png"]
    assert "matplotlib.pyplot" not in sys.modules


def test_the_lines_are_the_figures(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", layers=3, ricci_n=1e-6, gated=0.25, correction=None)
    figure = plots._layer_panels(plots._GEOMETRY, "step", read_lines(run / "steps.jsonl"))
    assert figure is not None
    n, gated = figure.axes  # nothing is drawn of a figure that no layer has
    assert [axes.get_ylabel() for axes in figure.axes] == ["N (Eq. 35)", "steps with a shut gate (%)"]
    assert n.get_yscale() == "log"
    assert [line.get_label() for line in gated.get_lines()] == ["stage.0", "stage.1", "stage.2"]
    assert [list(map(float, line.get_xdata())) for line in gated.get_lines()] == [[20.0, 40.0, 60.0]] * 3
    assert [list(map(float, line.get_ydata())) for line in gated.get_lines()] == [[25.0] * 3] * 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["stage.0", "stage.1", "stage.2"]
    colours = {line.get_color() for line in n.get_lines()}
    assert len(colours) == 3
    assert gated.get_ylim() == (-3, 103)
    assert plots._layer_panels(plots._MISMATCH, "step", read_lines(run / "steps.jsonl")) is None


def test_many_layers_get_a_colour_bar(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", layers=19)
    figure = plots._layer_panels(plots._WEIGHTS, "step", read_lines(run / "steps.jsonl"))
    assert figure is not None
    assert figure.legends == []
    bar = figure.axes[-1]
    names = [text.get_text() for text in bar.get_yticklabels()]
    assert (names[0], names[-1]) == ("stage.0", "stage.18")
    assert len(names) <= 13
    assert bar.get_ylabel() == "layer, from input to output"


def test_what_is_no_run_or_has_no_epoch_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone' is no run: the folder does not exist; give the folder of a run"):
        plot_run(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"holds no metrics\.jsonl"):
        plot_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "lo')
    with pytest.raises(DataError, match="has finished no epoch yet"):
        plot_run(tmp_path)
    run = _run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        plot_run(run, out=tmp_path / "file")


def test_groups_are_compared_with_their_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: kept.append(figure))
    groups = {
        "clipped": [_run(tmp_path / f"c{seed}", epochs=4, final=0.8 + seed / 10) for seed in (0, 1)],
        "lne": [_run(tmp_path / "l", epochs=3, final=0.6)],
    }
    assert compare(groups, "test_accuracy", tmp_path / "a.png") == tmp_path / "a.png"
    curves, bars = kept[0].axes
    assert curves.get_ylabel() == "test accuracy (%)"
    clipped, lne = curves.get_lines()
    assert list(clipped.get_ydata()) == pytest.approx([21.25, 42.5, 63.75, 85.0])
    assert list(lne.get_xdata()) == [1, 2, 3]
    band = curves.collections[0].get_paths()[0].vertices
    spread = math.sqrt(2) * 5  # of 80 and 90
    assert band[:, 1].max() == pytest.approx(85 + spread)
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([85 * 0.625, 60 * 2 / 3])
    assert [text.get_text() for text in bars.get_xticklabels()] == ["clipped", "lne"]


def test_a_comparison_is_a_picture_or_says_what_is_missing(tmp_path: Path) -> None:
    runs = [_run(tmp_path / f"{seed}", final=0.5) for seed in range(9)]
    groups = {f"group number {i}": [run] for i, run in enumerate(runs)}
    assert _names([compare(groups, "flip_rate", tmp_path / "new" / "a.png")]) == ["a.png"]
    with pytest.raises(ConfigError, match="has no 'accuracy' at every epoch; it has: loss, test_accuracy, val_acc"):
        compare(groups, "accuracy", tmp_path / "a.png")
    with pytest.raises(ConfigError, match="has no 'train_accuracy'"):
        compare(groups, "train_accuracy", tmp_path / "a.png")
    with pytest.raises(ConfigError, match="compare: 'lne' has no runs"):
        compare({"clipped": runs, "lne": []}, "loss", tmp_path / "a.png")
    with pytest.raises(ConfigError, match="compare: no group"):
        compare({}, "loss", tmp_path / "a.png")
