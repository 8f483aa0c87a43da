"""What a run writes down about its low-bit layers, and that looking changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lowbit.training import TrainConfig, train
from lowbit.training.checkpoint import load_checkpoint

Make = Callable[..., TrainConfig]
Read = Callable[[Path], list[dict[str, Any]]]

DEEP = {"model": "mlp(hidden=(16, 16, 16))", "batch_size": 32}  # fc2 and fc3 are low-bit; 40 steps per epoch


def _steps(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


def _board(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder))
    board.Reload()  # type: ignore[no-untyped-call]
    return board


def test_figures_of_layers_are_in_every_log(tiny: Make, records: Read) -> None:
    config = tiny(estimator="lne(block=channel)", mismatch_samples=3, diagnostics=5, **DEEP)
    run = Path(train(config).run)
    watched = {"flip_rate", "oscillation", "correction", "norm_squared", "dominance_margin"}
    epochs, steps = records(run), _steps(run)
    for record in epochs:
        assert record["layers"].keys() == {"fc2", "fc3"}
        for figures in record["layers"].values():
            assert figures.keys() == {*watched, "mismatch_cosine"}
        for name in (*watched, "mismatch_cosine"):
            mean = sum(figures[name] for figures in record["layers"].values()) / 2
            assert record[name] == pytest.approx(mean, rel=1e-5)
        assert 0 < record["flip_rate"] < 1
        assert record["norm_squared"] == pytest.approx(0.9, rel=0.01)
        assert record["correction"] > 0
    assert [(line["step"], line["epoch"]) for line in steps] == [(20, 1), (40, 1), (60, 2), (80, 2)]
    for first, second, record in zip(steps[::2], steps[1::2], epochs, strict=True):
        assert (first["loss"] + second["loss"]) / 2 == pytest.approx(record["loss"])
        flips = [line["layers"]["fc3"]["flip_rate"] for line in (first, second)]
        assert sum(flips) / 2 == pytest.approx(record["layers"]["fc3"]["flip_rate"], rel=1e-4)
        assert first["layers"]["fc2"].keys() == watched
    for folder, rows in ((run, epochs), (run / "steps", steps)):
        key = "epoch" if folder == run else "step"
        scalars = [(event.step, event.value) for event in _board(folder).Scalars("layers/correction/fc2")]
        expected = [(row[key], pytest.approx(row["layers"]["fc2"]["correction"])) for row in rows]
        assert scalars == expected


def test_looking_changes_nothing(nets: Path, tiny: Make, records: Read) -> None:
    changes = {"model": "nets:dropout", "weights": 2, "epochs": 1}
    looked = Path(train(tiny(name="looked", diagnostics=1, mismatch_samples=2, **changes)).run)
    blind = Path(train(tiny(name="blind", diagnostics=0, **changes)).run)
    one, other = load_checkpoint(looked / "last.ckpt"), load_checkpoint(blind / "last.ckpt")
    torch.testing.assert_close(one.model, other.model, rtol=0, atol=0)
    torch.testing.assert_close(one.rng, other.rng, rtol=0, atol=0)
    assert records(looked)[0]["loss"] == records(blind)[0]["loss"]
    assert "layers" not in records(blind)[0]
    assert "layers" not in _steps(blind)[0]
    assert other.monitor == {}


def test_layers_of_a_method_are_logged_beside_the_monitors(tiny: Make, records: Read) -> None:
    config = tiny(method="ricci", model="lenet5(channels=(2, 4), hidden=8)", batch_size=256, epochs=1, diagnostics=1)
    run = Path(train(config).run)
    (record,) = records(run)
    for figures in record["layers"].values():
        assert {"flip_rate", "oscillation", "ricci_n", "gated", "correction"} <= figures.keys()
    assert record["ricci_n"] == pytest.approx(_mean(record, "ricci_n"), rel=1e-4)


def _mean(record: dict[str, Any], name: str) -> float:
    values = [figures[name] for figures in record["layers"].values()]
    return sum(values) / len(values)


def test_two_processes_report_what_one_reports(nets: Path, tiny: Make, records: Read) -> None:
    changes = {"model": "nets:without_norm", "keep_float": (), "activations": 32, "epochs": 1, "precision": "fp32"}
    one = Path(train(tiny(name="one", mismatch_samples=1000, **changes)).run)
    two = Path(train(tiny(name="two", mismatch_samples=4, devices=2, diagnostics=1, **changes)).run)
    every = Path(train(tiny(name="every", diagnostics=1, **changes)).run)
    assert [line["step"] for line in _steps(two)] == [10]
    for name, figures in records(two)[0]["layers"].items():
        # Sums in another order may turn a weight that lies on the threshold.
        assert figures["flip_rate"] == pytest.approx(records(every)[0]["layers"][name]["flip_rate"], rel=0.05)
        assert -1 <= figures["mismatch_cosine"] <= 1
        assert records(one)[0]["layers"][name]["mismatch_cosine"] > 0


def test_accumulating_reaches_what_whole_batches_reach(nets: Path, tiny: Make, records: Read) -> None:
    changes = {"model": "nets:without_norm", "weights": 32, "activations": 32}
    whole = records(Path(train(tiny(name="whole", **changes)).run))
    parts = records(Path(train(tiny(name="parts", accumulate=4, **changes)).run))
    for a, b in zip(whole, parts, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
        assert b["train_accuracy"] == pytest.approx(a["train_accuracy"], abs=2e-3)


def test_half_precision_is_watched_too(tiny: Make, records: Read) -> None:
    run = Path(train(tiny(precision="bf16", estimator="lne", mismatch_samples=2, epochs=1)).run)
    (record,) = records(run)
    assert {"flip_rate", "oscillation", "correction", "mismatch_cosine"} <= record["layers"]["fc2"].keys()
    assert None not in record["layers"]["fc2"].values()
