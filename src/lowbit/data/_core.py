"""What a data source hands over: two splits of uint8 images, their classes, and the augmentation that suits them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit._errors import ConfigError, DataError
from lowbit._registry import Registry

DATA: Registry[Callable[..., ImageData]] = Registry("data source")


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels, in the order of the source.

    Attributes:
        images: uint8 [N, C, H, W], in units of 1/255 of full brightness.
        labels: int64 [N], class indices.

    Raises: DataError when the shapes or types are other than these.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            given = f"{self.images.dtype} {list(self.images.shape)}"
            raise DataError(f"the images are {given}; expected torch.uint8 [N, C, H, W] with values 0..255")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            given = f"{self.labels.dtype} {list(self.labels.shape)}"
            raise DataError(f"the labels are {given}; expected torch.int64 [{len(self.images)}], one per image")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for image classification.

    Attributes:
        name: what tables and logs call it.
        train: the split to learn from.
        test: the split to report on.
        classes: one name per class; label k means `classes[k]`.
        flip: whether a mirrored image is still an image of its class.
        crop_padding: pixels of padding for random crops that suit these images; 0 for none.

    Raises: DataError for an empty split, splits of different image shapes, or a label that is no class.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    flip: bool = False
    crop_padding: int = 0

    def __post_init__(self) -> None:
        shapes = {part: tuple(split.images.shape[1:]) for part, split in self._splits()}
        if shapes["train"] != shapes["test"]:
            raise DataError(
                f"{self.name}: training images are {shapes['train']} and test images {shapes['test']} "
                "(channels, height, width); both splits must have one shape"
            )
        for part, split in self._splits():
            if len(split) == 0 or 0 in shapes[part]:
                raise DataError(f"{self.name}: the {part} split is empty; expected at least one image")
            wrong = ((split.labels < 0) | (split.labels >= len(self.classes))).nonzero()
            if len(wrong):
                first = int(wrong[0])
                raise DataError(
                    f"{self.name}: image {first} of the {part} split has label {int(split.labels[first])}; expected "
                    f"0..{len(self.classes) - 1}, one of the {len(self.classes)} classes ({len(wrong)} such labels)"
                )

    def _splits(self) -> tuple[tuple[str, Split], tuple[str, Split]]:
        return ("train", self.train), ("test", self.test)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.train.images.shape[2], self.train.images.shape[3]


def split_validation(train: Split, validation: float | int, seed: int) -> tuple[Split, Split]:
    """Set part of a training split aside, drawn without replacement; each part keeps the order of the source.

    Args:
        train: the split to divide.
        validation: a fraction in [0, 1), rounded to a number of images, or a number of images; 0 sets none aside.
        seed: decides which images; the same seed always takes the same ones.

    Returns: (what is left to train on, the validation split).

    Raises: ConfigError when `validation` is negative, or leaves nothing to train on.
    """
    total = len(train)
    valid_type = isinstance(validation, (int, float)) and not isinstance(validation, bool)
    in_range = valid_type and 0 <= validation < (1 if isinstance(validation, float) else max(total, 1))
    count = (round(validation * total) if isinstance(validation, float) else validation) if in_range else total
    if not in_range or (total and count >= total):
        raise ConfigError(
            f"validation is {validation!r}; expected a fraction in [0, 1) or a number of images below {total}, "
            "the size of the training split"
        )
    if count == 0:
        return train, Split(train.images[:0], train.labels[:0])
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    aside, kept = order[:count].sort().values, order[count:].sort().values
    return Split(train.images[kept], train.labels[kept]), Split(train.images[aside], train.labels[aside])


@dataclass(frozen=True)
class Normalization:
    """Per-channel shift and scale: x̂ = (x/255 − mean) / std for a uint8 pixel x.

    Attributes:
        mean: one per channel, in units of [0, 1] pixels.
        std: one per channel, likewise; positive.

    Raises: ConfigError when the two differ in length or a standard deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(
                f"normalization has {len(self.mean)} means and {len(self.std)} stds; expected one per channel"
            )
        if not all(value > 0 for value in self.std):
            raise ConfigError(f"normalization has std {self.std}; expected positive numbers")

    @classmethod
    def of(cls, split: Split) -> Normalization:
        """Mean and population standard deviation of each channel over all images and pixels of `split`.

        A channel that is constant has std 1, so that it becomes 0 everywhere.

        Raises: DataError for an empty split.
        """
        if split.images.numel() == 0:
            raise DataError("cannot compute mean and std of an empty split; expected at least one image")
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        for channel in range(split.images.shape[1]):
            # A histogram of the 256 values is exact, and needs no float copy of the images.
            counts = torch.zeros(256, dtype=torch.float64)
            for images in torch.split(split.images, 8192):
                counts += torch.bincount(images[:, channel].flatten(), minlength=256).cpu()
            share = counts / counts.sum()
            mean = (share * levels).sum()
            variance = (share * (levels - mean) ** 2).sum()
            constant = int((counts > 0).sum()) == 1
            means.append(float(mean))
            stds.append(1.0 if constant else float(variance.sqrt()))
        return cls(tuple(means), tuple(stds))
