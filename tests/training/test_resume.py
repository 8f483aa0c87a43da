"""Stopping a run at any moment and going on as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lowbit import CheckpointError, ConfigError
from lowbit.training import TrainConfig, resumed_config, train
from lowbit.training.checkpoint import load_checkpoint
from lowbit.training.config import dump_config

Make = Callable[..., TrainConfig]
Read = Callable[[Path], list[dict[str, Any]]]


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    for _ in range(12_000):
        if condition():
            return
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        time.sleep(0.01)
    raise AssertionError("the run made no progress")


def _kill_in_epoch(config: TrainConfig, folder: Path, epoch: int) -> None:
    """Start `config` in a process of its own and SIGKILL it while it trains epoch number `epoch`, counted from 1."""
    (folder / "recipe.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "lowbit", "train", "--config", "recipe.yaml", "--out", str(config.out)]
    assert config.out is not None
    run: Path = config.out
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE) as process:
        try:
            _wait_for(
                lambda: (run / "last.ckpt").exists() and load_checkpoint(run / "last.ckpt").epoch >= epoch - 1, process
            )
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_run_continues_exactly(nets: Path, tiny: Make, records: Read) -> None:
    # Epochs of 80 steps, so that the kill lands between two checkpoints; dropout draws from the global generator.
    changes = {"model": "nets:dropout", "estimator": "reste", "batch_size": 16, "epochs": 4, "mismatch_samples": 2}
    killed = tiny(name="killed", **changes)
    _kill_in_epoch(killed, nets, epoch=3)
    assert killed.out is not None
    done = load_checkpoint(killed.out / "last.ckpt").epoch
    assert 2 <= done < 4
    with (killed.out / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 99}\n')  # as if the kill had come between the line and the checkpoint
    with (killed.out / "steps.jsonl").open("a") as file:
        file.write('{"step": 999, "epo')  # as if it had come in the middle of a line
    result = train(resumed_config(killed.out))
    whole = train(tiny(name="whole", **changes))
    assert records(killed.out) == records(Path(whole.run))
    steps = (killed.out / "steps.jsonl").read_text()
    assert steps == (Path(whole.run) / "steps.jsonl").read_text()
    assert [json.loads(line)["step"] for line in steps.splitlines()] == list(range(20, 321, 20))
    for name in ("last.ckpt", "best.ckpt"):
        one, other = load_checkpoint(killed.out / name), load_checkpoint(Path(whole.run) / name)
        assert one.epoch == other.epoch
        torch.testing.assert_close(one.model, other.model, rtol=0, atol=0)
        torch.testing.assert_close(one.optimizer["state"], other.optimizer["state"], rtol=0, atol=0)
        assert str(one.optimizer["param_groups"]) == str(other.optimizer["param_groups"])
        torch.testing.assert_close(one.rng, other.rng, rtol=0, atol=0)
        torch.testing.assert_close(one.monitor, other.monitor, rtol=0, atol=0)
        assert one.monitor
    assert (result.test_accuracy, result.best_accuracy) == (whole.test_accuracy, whole.best_accuracy)
    board = EventAccumulator(str(killed.out))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4]
    board = EventAccumulator(str(killed.out / "steps"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(20, 321, 20))
    environment = json.loads((killed.out / "environment.json").read_text())
    assert [session["after_epoch"] for session in environment["resumed"]] == [done]


def test_a_run_killed_in_its_first_epoch_continues_exactly(nets: Path, tiny: Make, records: Read) -> None:
    changes = {"model": "nets:dropout", "batch_size": 8, "epochs": 2}
    killed = tiny(name="killed", **changes)
    _kill_in_epoch(killed, nets, epoch=1)
    assert killed.out is not None
    assert load_checkpoint(killed.out / "last.ckpt").epoch == 0
    assert not (killed.out / "best.ckpt").exists()
    train(resumed_config(killed.out))
    whole = Path(train(tiny(name="whole", **changes)).run)
    assert records(killed.out) == records(whole)
    one, other = load_checkpoint(killed.out / "last.ckpt"), load_checkpoint(whole / "last.ckpt")
    torch.testing.assert_close(one.model, other.model, rtol=0, atol=0)
    torch.testing.assert_close(one.rng, other.rng, rtol=0, atol=0)


def test_where_a_resumed_run_computes_may_change(tiny: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(train(tiny(schedule="constant", device="auto", epochs=1)).run)
    capsys.readouterr()
    moved = replace(resumed_config(run), epochs=2, device="cpu", threads=2, eval_batch_size=77)
    assert train(moved).epochs == 2
    told = capsys.readouterr().err
    assert "--device is cpu, it was auto: the run goes on, but need not repeat exactly" in told
    assert "--threads is 2, it was 1: " in told
    assert "eval_batch_size" not in told
    assert (resumed_config(run).threads, resumed_config(run).eval_batch_size) == (2, 77)


@pytest.fixture
def finished(tiny: Make) -> Path:
    return Path(train(tiny(schedule="constant", method="ricci", model="lenet5(channels=(2, 2), hidden=8)")).run)


def test_extending_equals_a_longer_run_and_keeps_the_new_length(finished: Path, tiny: Make, records: Read) -> None:
    longer = train(replace(resumed_config(finished), epochs=3))
    model = "lenet5(channels=(2, 2), hidden=8)"
    whole = train(tiny(name="whole", schedule="constant", method="ricci", model=model, epochs=3))
    assert longer.epochs == 3
    assert records(finished) == records(Path(whole.run))
    assert resumed_config(finished).epochs == 3


def test_resuming_a_finished_run_repeats_its_result(finished: Path) -> None:
    before = load_checkpoint(finished / "last.ckpt")
    again = train(resumed_config(finished))
    assert (again.epochs, again.test_accuracy) == (2, before.history[-1]["test_accuracy"])
    assert load_checkpoint(finished / "last.ckpt").history == before.history


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": 0.5, "estimator": "ewgs"}, r"--estimator ewgs \(the run: clipped\), --lr 0.5 \(the run: 0.003\)"),
        ({"epochs": 1}, "--epochs 1: the run has done 2 epochs already"),
        ({"devices": 2}, r"--devices 2 \(the run: 1\)"),
        ({"out": Path("elsewhere")}, "contradicts --resume"),
    ],
)
def test_what_contradicts_the_run_is_named(finished: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        train(replace(resumed_config(finished), **changes))


def test_a_schedule_over_the_whole_run_is_not_extended(tiny: Make) -> None:
    run = Path(train(tiny(schedule="cosine", epochs=1)).run)
    with pytest.raises(ConfigError, match="cosine is laid out over the whole run"):
        train(replace(resumed_config(run), epochs=2))


def test_a_run_with_an_annealed_estimator_is_not_extended(tiny: Make) -> None:
    run = Path(train(tiny(schedule="constant", estimator="reste", epochs=1)).run)
    with pytest.raises(ConfigError, match="anneals its estimator over its own number of epochs"):
        train(replace(resumed_config(run), epochs=2))


def test_a_checkpoint_from_before_the_monitor_can_be_resumed(tiny: Make) -> None:
    run = Path(train(tiny(schedule="constant", epochs=1)).run)
    content = torch.load(run / "last.ckpt", weights_only=True) | {"version": 1}
    del content["monitor"]
    torch.save(content, run / "last.ckpt")
    assert train(replace(resumed_config(run), epochs=2)).epochs == 2
    assert load_checkpoint(run / "last.ckpt").monitor.keys() == {"levels", "directions"}


def test_a_damaged_checkpoint_is_reported(finished: Path) -> None:
    path = finished / "last.ckpt"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        train(resumed_config(finished))
