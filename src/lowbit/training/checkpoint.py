"""Checkpoints: everything a run needs to continue exactly, in a file that is either whole or not there.

The file is `torch.save` of tensors and plain values, so it loads with `weights_only=True` and runs no code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit._errors import CheckpointError

CHECKPOINT_VERSION = 2
"""Version of the file's layout; a file of another version is refused, but for 1, which lacks only `monitor`."""

_FORMAT = "lowbit checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a whole number of epochs, 0 included."""

    epoch: int
    """Epochs done."""
    config: dict[str, Any]
    """The configuration as plain values, see `training.config.to_dict`."""
    classes: list[str]
    """Names of the classes, in the order of the model's outputs."""
    normalization: dict[str, list[float]]
    """Mean and standard deviation per channel that the images were normalised with."""
    model: dict[str, Tensor]
    """Parameters and buffers."""
    optimizer: dict[str, Any]
    """Optimizer state."""
    method: dict[str, Any]
    """Method state."""
    guard: dict[str, list[float]]
    """State of the divergence guard."""
    monitor: dict[str, Tensor]
    """State of the weights' monitor."""
    rng: list[dict[str, Tensor]]
    """torch's random-number states, one entry per rank."""
    history: list[dict[str, Any]]
    """The lines of `metrics.jsonl` so far; the best epoch so far follows from them."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path` atomically: a crash at any moment leaves the old file or the new one, never half.

    Raises: CheckpointError when the disk refuses.
    """
    content = {"format": _FORMAT, "version": CHECKPOINT_VERSION}
    content |= {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    part = path.with_name(f".{path.name}-{os.getpid()}.part")
    try:
        try:
            with part.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"cannot write checkpoint '{path}': {error}; the previous one is untouched") from None


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: on Linux it is the folder that records it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises: CheckpointError when the file is missing, cut off or damaged, not a checkpoint, or of another version.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint '{path}' does not exist; {_hint(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file surfaces as any of half a dozen types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"checkpoint '{path}' ({path.stat().st_size} bytes) is damaged or cut off and cannot be read ({reason}); "
            f"use another checkpoint of the run, or train again"
        ) from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"'{path}' is not a lowbit checkpoint; expected last.ckpt or best.ckpt of a run folder")
    if content.get("version") == 1:
        content |= {"version": CHECKPOINT_VERSION, "monitor": {}}
    if content.get("version") != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"checkpoint '{path}' has version {content.get('version')}, this lowbit reads version "
            f"{CHECKPOINT_VERSION}; use the lowbit that wrote it"
        )
    expected = {field.name for field in fields(Checkpoint)}
    missing = sorted(expected - content.keys())
    if missing:
        raise CheckpointError(f"checkpoint '{path}' lacks {', '.join(missing)}; it is damaged or was edited")
    return Checkpoint(**{name: content[name] for name in expected})


def _hint(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder '{path.parent}'; give the folder of a run, such as runs/NAME"
    found = sorted(p.name for p in path.parent.glob("*.ckpt"))
    if found:
        return f"the folder holds {', '.join(found)}"
    return "the folder holds no checkpoint: it is not a run folder, or the run stopped while it was being set up"


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load parameters and buffers, all of them. Raises: CheckpointError naming what is missing, extra or misshapen."""
    own = model.state_dict()
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in own]
    problems += shape_problems(own, state)
    if problems:
        raise CheckpointError(f"{source} does not fit this model: {shortened(problems)}")
    model.load_state_dict(dict(state))


def shape_problems(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """A line for every tensor that both have, with different shapes."""
    return [
        f"{name} has shape {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]


def shortened(items: list[str], most: int = 5) -> str:
    """The first few items and the number of the others."""
    rest = len(items) - most
    return "; ".join(items[:most]) + (f"; and {rest} more" if rest > 0 else "")
