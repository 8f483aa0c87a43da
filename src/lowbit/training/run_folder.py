"""The run folder: what a run leaves behind besides its checkpoints."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch

from lowbit import __version__
from lowbit._errors import CheckpointError, ConfigError
from lowbit._folders import new_folder
from lowbit._spec import parse
from lowbit.training.config import CONFIG_FILE, FLOAT_BITS, TrainConfig, dump_config

ENVIRONMENT = "environment.json"


def run_name(config: TrainConfig) -> str:
    """A readable name: data, model, bits; for example `digits-lenet5-w1a2`."""
    model = parse(config.model)[0].rpartition(":")[2]
    low_bit = config.weights < FLOAT_BITS or config.activations < FLOAT_BITS
    bits = f"w{config.weights}a{config.activations}" if low_bit else "float"
    return f"{parse(config.data)[0]}-{model}-{bits}".replace("/", "-")


def check_unused(folder: Path | None) -> None:
    """Make sure that a run may be written to `folder`. Raises: ConfigError when something is there already."""
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"--out '{folder}' is a file; give a folder that does not exist yet")
    if any(folder.iterdir()):
        continuing = f"continue that run with --resume {folder}, or " if (folder / CONFIG_FILE).exists() else ""
        raise ConfigError(f"run folder '{folder}' exists and is not empty; {continuing}choose another --out")


def create_run_folder(config: TrainConfig) -> Path:
    """Make the run folder: `config.out`, or a new one under runs/ with the moment in its name.

    Raises: ConfigError when it is in use or cannot be made.
    """
    check_unused(config.out)
    return new_folder(config.out, run_name(config))


def write_description(run: Path, config: TrainConfig, device: torch.device, resumed_after: int | None) -> None:
    """Write `config.yaml` and `environment.json`; a resumed run adds its environment to the first one's."""
    write_text(run / CONFIG_FILE, dump_config(config))
    now = _environment(device)
    path = run / ENVIRONMENT
    if resumed_after is not None and path.exists():
        first = json.loads(path.read_text(encoding="utf-8"))
        first.setdefault("resumed", []).append({"after_epoch": resumed_after, **now})
        now = first
    write_text(path, json.dumps(now, indent=2) + "\n")


def _environment(device: torch.device) -> dict[str, Any]:
    import numpy

    cuda = device.type == "cuda"
    return {
        "lowbit": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _commit() -> str | None:
    """The git commit of the lowbit in use, with "+" when its files differ from it; None for an installed copy."""
    source = Path(__file__).parent
    try:
        tracked = _git(source, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git(source, "rev-parse", "HEAD") if tracked else ""
        changed = _git(source, "status", "--porcelain", "--", ".") if commit else ""
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}{'+' if changed else ''}" or None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def write_text(path: Path, text: str, mode: Literal["w", "a"] = "w") -> None:
    """Write `text` to a file, or add it. Raises: CheckpointError when the disk refuses."""
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CheckpointError(f"cannot write '{path}': {error}") from None
