"""The networks of the comparison of runtimes: their bits, and a short, seeded training on real images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowbit
from lowbit.data import Augmentation, Batches, ImageData, Normalization, Split, load_data
from lowbit.models import build_model

EDGE_BITS = 8  # of the first and last layer, where activations are low-bit
FIRST, LAST = "conv1", "classifier"  # in each of the nets


@dataclass(frozen=True)
class Subject:
    """A data set, and the net that learns it.

    Args:
        folder: below the data folder; None for a source without files.
        spec: of the float net; its first layer is FIRST, its last one LAST.
        steps, batch: of training.
        looked: images that are compared at a time; with them grows the memory, since qonnx keeps every tensor.
    """

    folder: str | None
    spec: str
    steps: int
    batch: int
    looked: int

    def load(self, name: str, data: Path | None) -> ImageData:
        return load_data(name, None if self.folder is None or data is None else data / self.folder)


SUBJECTS = {
    "mnist": Subject("mnist", "lenet5", steps=200, batch=64, looked=250),
    "cifar10": Subject("cifar10-jpeg", "resnet20", steps=200, batch=64, looked=200),
    "digits": Subject(None, "lenet5(channels=(8, 16), hidden=32)", steps=100, batch=32, looked=50),
}
USUAL = ("mnist", "cifar10")

SETTINGS = {"W1A1": (1, 1), "W1A2": (1, 2), "W2A2": (2, 2), "W4A4": (4, 4), "W8A8": (8, 8), "W1A32": (1, 32)}
"""Bits of weights and activations."""


def convert(model: nn.Module, weights: int, activations: int) -> nn.Module:
    """The low-bit net: 8-bit first and last layers, float ones where activations are float."""
    if activations == 32:
        return lowbit.convert(model, weights)
    both: dict[str, Any] = {"weights": EDGE_BITS, "activations": EDGE_BITS}
    # Normalised images have both signs; what comes to the last layer has none.
    overrides = {FIRST: {**both, "activation_quantizer": "lsq"}, LAST: both}
    return lowbit.convert(model, weights, activations, keep_float=(), overrides=overrides)


def trained(subject: Subject, data: ImageData, setting: str, steps: int) -> nn.Module:
    """A net in these bits after some steps of Adam, in evaluation; the same in every run on one machine."""
    images = Batches(
        data.train,
        subject.batch,
        Normalization.of(data.train),
        device="cpu",
        augmentation=Augmentation(flip=data.flip),
        shuffle=True,
        drop_last=True,
        channels_last=True,
    )
    plain = build_model(subject.spec, data.num_classes, data.in_channels, data.image_size, seed=0)
    model = convert(plain, *SETTINGS[setting])
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lowbit.calibrate(model, next(iter(images.epoch(0)))[0])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for step in range(steps):
        if step % len(images) == 0:
            epoch = images.epoch(step // len(images))
        x, labels = next(epoch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def held_out(subject: Subject, data: ImageData, images: int | None) -> list[tuple[Tensor, Tensor]]:
    """The first images of the test split, and their labels, a few at a time; all without a number."""
    chosen = Split(data.test.images[:images], data.test.labels[:images])
    return list(Batches(chosen, subject.looked, Normalization.of(data.train), device="cpu").epoch(0))
