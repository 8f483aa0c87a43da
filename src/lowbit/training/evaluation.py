"""Accuracy of a model, and of a finished run."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lowbit._errors import CheckpointError
from lowbit.data import Batches, Normalization, Split
from lowbit.training.checkpoint import Checkpoint, load_checkpoint, load_state
from lowbit.training.config import TrainConfig, from_dict, resolve
from lowbit.training.result import BEST, LAST
from lowbit.training.runtime import all_sum, launch, place
from lowbit.training.task import build_low_bit_model, load_task

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Score:
    """What a model reaches on a set of images."""

    accuracy: float
    """Correct images over all images."""
    loss: float
    """Mean cross-entropy per image, in nats, without label smoothing."""
    images: int
    """Number of images."""


class Evaluator:
    """Scores models on one split, every image exactly once, the images shared out between the ranks."""

    def __init__(self, fabric: Fabric, split: Split, normalization: Normalization, config: TrainConfig) -> None:
        self._fabric = fabric
        self._count = len(split)
        rank, world_size = fabric.global_rank, fabric.world_size
        share = split if world_size == 1 else Split(split.images[rank::world_size], split.labels[rank::world_size])
        self._batches: Batches | None = None
        if len(share):
            size, layout = min(config.eval_batch_size, len(share)), config.channels_last
            self._batches = Batches(share, size, normalization, device=fabric.device, channels_last=layout)

    def __len__(self) -> int:
        return self._count

    def score(self, model: nn.Module) -> Score:
        """Accuracy and loss of `model`, in evaluation mode; its mode is put back afterwards."""
        totals = torch.zeros(2, dtype=torch.float64, device=self._fabric.device)
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), self._fabric.autocast():
                for images, labels in self._batches.epoch(0) if self._batches else ():
                    logits = model(images).float()
                    totals[0] += (logits.argmax(dim=1) == labels).sum()
                    totals[1] += cross_entropy(logits, labels, reduction="sum").double()
        finally:
            model.train(training)
        correct, loss = all_sum(self._fabric, totals).tolist()
        return Score(correct / self._count, loss / self._count, self._count)


@dataclass(frozen=True)
class EvalResult:
    """What `lowbit eval` reports."""

    run: str
    """The run folder."""
    checkpoint: str
    """The checkpoint's file name."""
    epoch: int
    """Epochs the checkpoint was trained for."""
    test_accuracy: float
    """Correct test images over all test images."""
    loss: float
    """Mean cross-entropy per test image, in nats."""
    images: int
    """Number of test images."""
    seconds: float
    """Time the evaluation took, without loading."""
    images_per_second: float
    """Test images per second."""


def evaluate(
    run: Path,
    checkpoint: Literal["best", "last"] = "best",
    data_path: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> EvalResult:
    """Evaluate a run's checkpoint on the test images of its data source.

    Args:
        run: the run folder.
        checkpoint: which of its checkpoints.
        data_path: where the data is now, if it has moved since.
        device: where to compute.

    Raises: CheckpointError, DataError.
    """
    path = run / f"{checkpoint}.ckpt"
    if checkpoint == "best" and not path.exists() and (run / LAST).exists():
        raise CheckpointError(
            f"run '{run}' has no {BEST} yet: it stopped before its first epoch was over. Evaluate its initial weights "
            f"with --checkpoint last, or continue it with: lowbit train --resume {run}"
        )
    saved = load_checkpoint(path)
    config = from_dict(saved.config, str(path))
    config = dataclasses.replace(config, device=device, devices=1, init=None, data_path=data_path or config.data_path)
    return launch(lambda fabric, config: _measure(fabric, config, saved, path), resolve(config))


def _measure(fabric: Fabric, config: TrainConfig, saved: Checkpoint, path: Path) -> EvalResult:
    task = load_task(config)
    if list(task.data.classes) != saved.classes:
        raise CheckpointError(f"the run was trained on the classes {saved.classes}, the data has {task.data.classes}")
    model, _ = build_low_bit_model(config, task.data)
    load_state(model, saved.model, f"checkpoint '{path}'")
    place(fabric, model, config.channels_last)
    normalization = Normalization(tuple(saved.normalization["mean"]), tuple(saved.normalization["std"]))
    evaluator = Evaluator(fabric, task.data.test, normalization, config)
    started = time.perf_counter()
    result = evaluator.score(model)
    seconds = time.perf_counter() - started
    return EvalResult(
        run=str(path.parent),
        checkpoint=path.name,
        epoch=saved.epoch,
        test_accuracy=result.accuracy,
        loss=result.loss,
        images=result.images,
        seconds=seconds,
        images_per_second=result.images / seconds,
    )
