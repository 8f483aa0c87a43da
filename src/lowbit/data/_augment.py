"""Augmentation of a whole batch of uint8 images at once, on whatever device they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit._errors import ConfigError


@dataclass(frozen=True)
class Augmentation:
    """Random crops and mirror images, drawn anew for every image in every epoch.

    Attributes:
        crop_padding: p > 0 shifts the image by −p..p pixels in each direction, uniformly: the crop of its own size
            out of the image padded by p pixels. The padding is black (pixel value 0), before normalisation.
        flip: mirror left and right with probability 1/2.

    Raises: ConfigError when the padding is negative.
    """

    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ConfigError(f"crop_padding is {self.crop_padding}; expected 0 (no crops) or a number of pixels")

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Draw the top and left edge of the crop and the mirroring of `count` images."""
        offsets = torch.randint(0, 2 * self.crop_padding + 1, (2, count), generator=generator)
        mirrored = torch.randint(0, 2, (count,), generator=generator) * int(self.flip)
        return Draws(offsets[0], offsets[1], mirrored)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """The augmented copy of `images` (uint8 [B, C, H, W], contiguous), one draw for each; same shape and device."""
        if self.crop_padding:
            images = _crop(images, draws.top, draws.left, self.crop_padding)
        if self.flip:
            images = _mirror(images, draws.mirrored)
        return images


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers that augment B images, each int64 [B].

    Attributes:
        top: first row of the crop in the padded image, 0..2p; p leaves the image where it is.
        left: first column, likewise.
        mirrored: 1 to mirror, 0 not to.
    """

    top: Tensor
    left: Tensor
    mirrored: Tensor

    def take(self, positions: Tensor) -> Draws:
        """The draws at `positions`, in that order."""
        return Draws(self.top[positions], self.left[positions], self.mirrored[positions])

    def to(self, device: torch.device) -> Draws:
        """The same draws on `device`."""
        return Draws(self.top.to(device), self.left.to(device), self.mirrored.to(device))

    def __getitem__(self, part: slice) -> Draws:
        return Draws(self.top[part], self.left[part], self.mirrored[part])


def _crop(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    # A shift by whole pixels is a shift of the image's flat memory, save for what wraps around at the borders, which
    # the two masks blank. So each crop is one contiguous window: one row copy, where an index per pixel is 50 × slower.
    batch, channels, height, width = images.shape
    size = channels * height * width
    margin = padding * (width + 1)
    flat = F.pad(images.reshape(-1), (margin, margin))
    windows = flat.as_strided((flat.numel() - size + 1, size), (1, 1))
    start = torch.arange(batch, device=images.device) * size + top * width + left
    shifted = windows.index_select(0, start).view(batch, channels, height, width)
    rows = _inside(top, height, padding).view(batch, 1, height, 1)
    columns = _inside(left, width, padding).view(batch, 1, 1, width)
    return shifted.mul_(rows * columns)


def _inside(offset: Tensor, length: int, padding: int) -> Tensor:
    source = torch.arange(length, device=offset.device) + (offset[:, None] - padding)
    return ((source >= 0) & (source < length)).to(torch.uint8)


def _mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    # Mirroring all and picking rows is faster than torch.where or indexed assignment on uint8.
    both = torch.cat((images, images.flip(3)))
    return both.index_select(0, torch.arange(len(images), device=images.device) + mirrored * len(images))
