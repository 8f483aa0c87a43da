"""The figures that a run leaves in its folder: names of the files, and how to read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowbit._errors import ConfigError, DataError

METRICS = "metrics.jsonl"
"""A line for every epoch."""
STEPS = "steps.jsonl"
"""A line for every window of steps."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines up to one that was cut off; none where there is no file."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def read_epochs(run: Path) -> list[dict[str, Any]]:
    """The records of a run's epochs, in order.

    Raises: ConfigError when `run` is not the folder of a run, DataError when it has finished no epoch yet.
    """
    if not (run / METRICS).is_file():
        state = f"holds no {METRICS}" if run.is_dir() else "does not exist"
        raise ConfigError(f"'{run}' is no run: the folder {state}; give the folder of a run, such as runs/NAME")
    epochs = read_lines(run / METRICS)
    if not epochs:
        raise DataError(f"run '{run}' has finished no epoch yet: there is nothing to plot; wait for its first one")
    return epochs
