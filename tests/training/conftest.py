from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowbit.training import TrainConfig

NETS = """
from torch import nn


def dropout(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes),
    )


def without_norm(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, 32), nn.Tanh(), nn.Linear(32, num_classes))
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with models of the user's own: nets:dropout, nets:without_norm."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., TrainConfig]:
    """A run of a second: a small multi-layer perceptron on digits, in one thread."""

    def config(**changes: Any) -> TrainConfig:
        out = tmp_path / str(changes.pop("name", "run"))
        small = {"model": "mlp(hidden=(32, 32))", "epochs": 2, "batch_size": 128, "threads": 1, "device": "cpu"}
        return TrainConfig(**{**small, "out": out, **changes})

    return config


@pytest.fixture
def records() -> Callable[[Path], list[dict[str, Any]]]:
    """The lines of a run's metrics.jsonl without those that measure time."""

    def read(run: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]

    return read
