"""What the commands that deploy need from a run or a data source: models, images, and where they come from."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lowbit._errors import ArtefactError, ConfigError
from lowbit._spec import parse
from lowbit.data import Batches, ImageData, Normalization, Split, load_data
from lowbit.deploy.files.origin import Origin
from lowbit.deploy.opened import Opened
from lowbit.training.config import FLOAT_BITS, TrainConfig
from lowbit.training.reopen import Saved, open_run
from lowbit.training.runtime import launch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CALL = 2**19
"""Numbers in the images that are compared in one call, at most: every layer's codes are kept."""


@dataclass(frozen=True)
class FromRun:
    """A run's model, and what its file is compared on."""

    model: nn.Module
    """In evaluation mode, on the CPU."""
    batches: list[Tensor]
    """Test images, as the model takes them."""
    origin: Origin
    """What the file says about itself."""


def from_run(run: Path, checkpoint: Literal["best", "last"], data_path: Path | None, images: int, seed: int) -> FromRun:
    """Open a run for deployment. Raises: CheckpointError, ConfigError, DataError."""
    check_count("--images", images)
    saved = open_run(run, checkpoint, data_path, "cpu")
    if min(saved.config.weights, saved.config.activations) == FLOAT_BITS and not saved.config.overrides:
        raise ConfigError(
            f"run '{run}' was trained in float: no layer is low-bit, and there is nothing to export or to compare. "
            f"Train a low-bit model that starts from it: lowbit train --init {run} --weights 1 --activations 2"
        )
    saved = replace(saved, config=replace(saved.config, channels_last=False))
    return launch(lambda fabric, config: _open(fabric, config, saved, checkpoint, images, seed), saved.config)


def _open(
    fabric: Fabric, config: TrainConfig, saved: Saved, checkpoint: Literal["best", "last"], images: int, seed: int
) -> FromRun:
    model, task = saved.rebuild(fabric)
    data, normalization = task.data, task.normalization
    origin = Origin(
        model=config.model,
        classes=tuple(data.classes),
        in_channels=data.in_channels,
        image_size=data.image_size,
        mean=normalization.mean,
        std=normalization.std,
        data=_without_path(config.data),
        checkpoint=checkpoint,
        epoch=saved.checkpoint.epoch,
    )
    sample = drawn(data.test, images, seed)
    size = max(1, min(len(sample), CALL // sample.images[0].numel()))
    batches = [given for given, _ in Batches(sample, size, normalization, device="cpu").epoch(0)]
    return FromRun(model.eval(), batches, origin)


def drawn(split: Split, images: int | None, seed: int) -> Split:
    """At most so many images, at random: a source may be sorted by class, so that its first images are no sample."""
    if images is None or images >= len(split):
        return split
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    chosen = order[:images].sort().values
    return Split(split.images[chosen], split.labels[chosen])


def check_count(option: str, value: int | None) -> None:
    """Raises: ConfigError for a number below 1."""
    if value is not None and value < 1:
        raise ConfigError(f"{option} is {value}, expected a whole number from 1")


def _without_path(spec: str) -> str:
    """A data source without the place of its files, which is of no use elsewhere."""
    name, options = parse(spec)
    if "path" not in options:
        return spec
    rest = ", ".join(f"{key}={value!r}" for key, value in options.items() if key != "path")
    return f"{name}({rest})" if rest else name


@dataclass(frozen=True)
class PredictResult:
    """What `lowbit predict` answers."""

    artefact: str
    """The file."""
    runtime: str
    """What ran it."""
    data: str
    """The data source."""
    accuracy: float
    """Correct test images over all that were looked at."""
    images: int
    """How many those were."""
    seconds: float
    """Time of the model alone."""
    images_per_second: float
    """Images per second of that time."""
    batch_size: int
    """Images at a time."""
    threads: int
    """Threads."""


def predict(
    opened: Opened, data: str | None, data_path: Path | None, batch_size: int, limit: int | None, threads: int
) -> PredictResult:
    """Run a file on test images. Raises: ArtefactError, ConfigError, DataError."""
    source = data or _own_source(opened)
    images = load_data(source, data_path)
    _check_fits(opened, source, images)
    sample = drawn(images.test, limit, seed=0)
    normalization = Normalization(opened.origin.mean, opened.origin.std)
    batches = Batches(sample, min(batch_size, len(sample)), normalization, device="cpu")
    correct, seconds = 0, 0.0
    seen: set[Any] = set()
    for given, labels in batches.epoch(0):
        if given.shape not in seen:  # a new shape is planned on its first call
            opened.run(given)
            seen.add(given.shape)
        started = time.perf_counter()
        outputs = opened.run(given)
        seconds += time.perf_counter() - started
        correct += int((outputs.argmax(dim=1) == labels).sum())
    total = len(sample)
    name, runtime = str(opened.path), opened.runtime
    return PredictResult(
        name, runtime, source, correct / total, total, seconds, total / max(seconds, 1e-9), batch_size, threads
    )


def _own_source(opened: Opened) -> str:
    source = opened.origin.data
    if not source:
        raise ConfigError(f"'{opened.path}' does not say on what data its model was trained: give --data")
    if ":" in parse(source)[0]:
        raise ConfigError(
            f"'{opened.path}' names the data source '{source}', a function that is not part of lowbit, and lowbit runs "
            f"no code because a file says so: if you trust it, say so with --data '{source}'"
        )
    return source


def _check_fits(opened: Opened, source: str, data: ImageData) -> None:
    origin = opened.origin
    ours, theirs = (
        (data.in_channels, *data.image_size),
        (origin.in_channels, *origin.image_size),
    )
    if ours != theirs:
        raise ArtefactError(
            f"'{opened.path}' takes images of {theirs} (channels, height, width); those of '{source}' have {ours}"
        )
    if tuple(data.classes) != origin.classes:
        raise ArtefactError(
            f"'{opened.path}' tells {_some(origin.classes)} apart; the data '{source}' has {_some(data.classes)}"
        )


def _some(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
    return f"{len(classes)} classes ({shown})"
