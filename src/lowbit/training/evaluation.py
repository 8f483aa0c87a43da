"""Accuracy of a model, and of a finished run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lowbit.data import Batches, Normalization, Split
from lowbit.training.config import TrainConfig
from lowbit.training.reopen import Saved, open_run
from lowbit.training.runtime import all_sum, launch

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
    saved = open_run(run, checkpoint, data_path, device)
    return launch(lambda fabric, config: _measure(fabric, config, saved), saved.config)


def _measure(fabric: Fabric, config: TrainConfig, saved: Saved) -> EvalResult:
    model, task = saved.rebuild(fabric)
    evaluator = Evaluator(fabric, task.data.test, task.normalization, config)
    started = time.perf_counter()
    result = evaluator.score(model)
    seconds = time.perf_counter() - started
    return EvalResult(
        run=str(saved.path.parent),
        checkpoint=saved.path.name,
        epoch=saved.checkpoint.epoch,
        test_accuracy=result.accuracy,
        loss=result.loss,
        images=result.images,
        seconds=seconds,
        images_per_second=result.images / seconds,
    )
