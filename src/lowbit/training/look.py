"""Experiments on a finished run that need its model and its data together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lowbit._errors import ConfigError, DataError
from lowbit.data import Batches, Split
from lowbit.diagnostics.features import FeatureReport, class_subspaces, collect_features
from lowbit.diagnostics.features_plots import plot_features
from lowbit.diagnostics.repulsion import Descent, RepulsionReport, repulsion
from lowbit.diagnostics.repulsion_plots import plot_repulsion
from lowbit.training.config import TrainConfig
from lowbit.training.reopen import Saved, open_run
from lowbit.training.runtime import launch
from lowbit.training.task import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric

IMAGES = 10_000
"""Training images whose features are looked at when no number is given."""

WIDEST = 4096
"""The most numbers in an image whose pixels are looked at beside the features: more take long and much memory."""

WATCHED = 1_000
"""Training images over which the loss of a descent is looked at when no number is given."""


@dataclass(frozen=True)
class RunFeatures:
    """What `lowbit features` answers."""

    run: str
    """The run folder."""
    checkpoint: str
    """The checkpoint's file name."""
    epoch: int
    """Epochs the checkpoint was trained for."""
    report: FeatureReport
    """The last hidden layer's features."""
    pixels: FeatureReport | None
    """The same of the images themselves, brightness from 0 to 1: what the network began with. None where an image has
    more than 4,096 numbers."""
    files: list[str]
    """What was written: the picture, and this as JSON."""

    def render(self) -> str:
        """The result as a table for people."""
        head = f"{self.run}, {self.checkpoint} (epoch {self.epoch}), training images without augmentation"
        lines = [head, self.report.render(), f"features: {self.report.summary()}"]
        if self.pixels is not None:
            lines.append(f"pixels:   {self.pixels.summary()}")
        return "\n".join([*lines, f"written:  {', '.join(self.files)}"])


@dataclass(frozen=True)
class RunRepulsion:
    """What `lowbit repel` answers."""

    run: str
    """The run folder."""
    checkpoint: str
    """The checkpoint's file name."""
    epoch: int
    """Epochs the checkpoint was trained for."""
    seed: int
    """Seed of the order of the training images and of those that are looked at."""
    report: RepulsionReport
    """The losses."""
    files: list[str]
    """What was written: the picture, and this as JSON."""

    def render(self) -> str:
        """The result as a table for people."""
        head = f"{self.run}, {self.checkpoint} (epoch {self.epoch})"
        return f"{head}\n{self.report.render()}\nwritten: {', '.join(self.files)}"


def features_of_run(
    run: Path,
    checkpoint: Literal["best", "last"] = "best",
    data_path: Path | None = None,
    images: int = IMAGES,
    dimension: int | None = None,
    out: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> RunFeatures:
    """Look at what a run's last hidden layer makes of its training images, class by class.

    Training images, because it is these that the theory takes to lie in subspaces and that descent has seen; without
    augmentation and in evaluation mode, without those held out for validation. Writes `features.png` and
    `features.json`, over what was there.

    Args:
        run: the run folder.
        checkpoint: which of its checkpoints.
        data_path: where the data is now, if it has moved since.
        images: the most images to look at, drawn at random, the same ones each time.
        dimension: of the subspaces whose angles are measured; None takes those that hold 90 % of the energy.
        out: folder for the results; `features` in the run folder by default.
        device: where to compute.

    Raises: CheckpointError, ConfigError, DataError; see `collect_features` and `class_subspaces`.
    """
    _check_count("images", images)
    saved = open_run(run, checkpoint, data_path, device)
    report, pixels = launch(lambda fabric, config: _features(fabric, config, saved, images, dimension), saved.config)
    folder = run / "features" if out is None else out
    files = [str(folder / f"features.{suffix}") for suffix in ("png", "json")]
    result = RunFeatures(str(run), saved.path.name, saved.checkpoint.epoch, report, pixels, files)
    draw = partial(plot_features, report=report, pixels=pixels, title=_title(run))
    _write(folder, "features", asdict(result), draw)
    return result


def _features(
    fabric: Fabric, config: TrainConfig, saved: Saved, images: int, dimension: int | None
) -> tuple[FeatureReport, FeatureReport | None]:
    model, task = saved.rebuild(fabric)
    sample, classes = _sample(task.train, images, 0), task.data.classes
    features, labels, layer = collect_features(model, _batches(sample, task, fabric, config))
    report = class_subspaces(features, labels, classes, dimension, layer)
    pixels = sample.images.flatten(1)
    if pixels.shape[1] > WIDEST:
        return report, None
    if dimension is not None and dimension > pixels.shape[1]:
        return report, None  # the images have fewer numbers than the subspaces were to have dimensions
    return report, class_subspaces(pixels / 255, sample.labels, classes, dimension, "the model")


def repel_run(
    run: Path,
    estimators: Sequence[str] = ("identity",),
    descent: Descent | None = None,
    batch_size: int = 128,
    images: int = WATCHED,
    checkpoint: Literal["best", "last"] = "last",
    data_path: Path | None = None,
    out: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> RunRepulsion:
    """Start descent with other activation estimators where a run ended, its own beside them; see `repulsion`.

    The training batches are augmented as the run's were, since it is a minimum of their loss that the run looked for;
    the images over which the loss is looked at are training images without augmentation. Loss: the cross-entropy, with
    the run's label smoothing. In float32, by plain descent whatever the run's method. Writes `repulsion.png` and
    `repulsion.json`, over what was there.

    Args:
        run: the run folder.
        estimators: to compare with the run's own.
        descent: how to walk; its seed also orders the images.
        batch_size: images per step.
        images: the most images over which to look at the loss, drawn at random from the training images.
        checkpoint: which of the run's checkpoints.
        data_path: where the data is now, if it has moved since.
        out: folder for the results; `repulsion` in the run folder by default.
        device: where to compute.

    Raises: CheckpointError, ConfigError, DataError, UnknownNameError; see `repulsion`.
    """
    _check_count("images", images)
    _check_count("batch_size", batch_size)
    descent = descent or Descent()
    saved = open_run(run, checkpoint, data_path, device)
    config = replace(saved.config, precision="fp32", batch_size=batch_size, accumulate=1)
    report = launch(lambda fabric, config: _repel(fabric, config, saved, estimators, descent, images), config)
    folder = run / "repulsion" if out is None else out
    files = [str(folder / f"repulsion.{suffix}") for suffix in ("png", "json")]
    result = RunRepulsion(str(run), saved.path.name, saved.checkpoint.epoch, descent.seed, report, files)
    _write(folder, "repulsion", asdict(result), partial(plot_repulsion, report=report, title=_title(run)))
    return result


def _repel(
    fabric: Fabric, config: TrainConfig, saved: Saved, estimators: Sequence[str], descent: Descent, images: int
) -> RepulsionReport:
    model, task = saved.rebuild(fabric)
    watched = list(_batches(_sample(task.train, images, descent.seed), task, fabric, config))
    batches = task.batches(replace(config, seed=descent.seed), fabric.device, 0, 1)
    progress = max(0, saved.checkpoint.epoch - 1) / max(1, config.epochs - 1)
    loss_fn = partial(cross_entropy, label_smoothing=config.label_smoothing)
    return repulsion(model, _endless(batches), watched, loss_fn, estimators, descent, progress)


def _endless(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    return itertools.chain.from_iterable(map(batches.epoch, itertools.count()))


def _sample(split: Split, images: int, seed: int) -> Split:
    """At most so many images, at random: a source may be sorted by class, so that its first images are no sample."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    chosen = order[:images].sort().values
    return Split(split.images[chosen], split.labels[chosen])


def _batches(split: Split, task: Task, fabric: Fabric, config: TrainConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Images as they are in evaluation."""
    size, layout = min(config.eval_batch_size, len(split)), config.channels_last
    return Batches(split, size, task.normalization, device=fabric.device, channels_last=layout).epoch(0)


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} is {value}, expected a whole number from 1")


def _title(run: Path) -> str:
    return run.resolve().name


def _write(folder: Path, name: str, values: dict[str, object], draw: Callable[[Path], None]) -> None:
    """Write the picture and the JSON file. Raises: DataError when the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw(folder / f"{name}.png")
        (folder / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write to '{folder}': {error}; choose another --out") from None
