"""A finished run, opened again: its checkpoint, its configuration, its data and its model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import nn

from lowbit._errors import CheckpointError
from lowbit.data import Normalization
from lowbit.training.checkpoint import Checkpoint, load_checkpoint, load_state
from lowbit.training.config import TrainConfig, from_dict, resolve
from lowbit.training.result import BEST, LAST
from lowbit.training.runtime import place
from lowbit.training.task import Task, build_low_bit_model, load_task

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Saved:
    """A run's checkpoint, with the configuration to look at it on one device."""

    path: Path
    """The checkpoint's file."""
    checkpoint: Checkpoint
    """What it holds."""
    config: TrainConfig
    """The run's configuration, but for the device, the place of the data, and where the weights came from."""

    def rebuild(self, fabric: Fabric) -> tuple[nn.Module, Task]:
        """The model as it was saved, on the device of `fabric`, and the run's data, normalised as it was then.

        Raises: CheckpointError when the data has other classes or the weights do not fit, DataError.
        """
        task = load_task(self.config)
        if list(task.data.classes) != self.checkpoint.classes:
            raise CheckpointError(
                f"the run was trained on the classes {self.checkpoint.classes}, the data has {task.data.classes}"
            )
        model, _ = build_low_bit_model(self.config, task.data)
        load_state(model, self.checkpoint.model, f"checkpoint '{self.path}'")
        place(fabric, model, self.config.channels_last)
        mean, std = self.checkpoint.normalization["mean"], self.checkpoint.normalization["std"]
        return model, dataclasses.replace(task, normalization=Normalization(tuple(mean), tuple(std)))


def open_run(
    run: Path,
    checkpoint: Literal["best", "last"],
    data_path: Path | None,
    device: Literal["auto", "cpu", "cuda"],
) -> Saved:
    """Read a run's checkpoint.

    Args:
        run: the run folder.
        checkpoint: which of its checkpoints.
        data_path: where the data is now, if it has moved since.
        device: where to compute.

    Raises: CheckpointError.
    """
    path = run / f"{checkpoint}.ckpt"
    if checkpoint == "best" and not path.exists() and (run / LAST).exists():
        raise CheckpointError(
            f"run '{run}' has no {BEST} yet: it stopped before its first epoch was over. Look at its initial weights "
            f"with --checkpoint last, or continue it with: lowbit train --resume {run}"
        )
    saved = load_checkpoint(path)
    config = from_dict(saved.config, str(path))
    config = dataclasses.replace(config, device=device, devices=1, init=None, data_path=data_path or config.data_path)
    return Saved(path, saved, resolve(config))
