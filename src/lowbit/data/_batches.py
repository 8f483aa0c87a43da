"""Epochs of normalised batches: shuffled, shared out between ranks and augmented, from a seed alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lowbit._errors import ConfigError, DataError
from lowbit.data._augment import Augmentation, Draws
from lowbit.data._core import Normalization, Split

_ORDER, _AUGMENTATION = 0, 1  # the two streams of random numbers an epoch needs


class Batches:
    """One split as epochs of (images float32 [B, C, H, W] normalised, labels int64 [B]) on `device`.

    An epoch is a pure function of (seed, epoch number, rank): the order and the augmentation are drawn on the CPU, so
    they are the same on every device, and shuffling the global order comes before sharing it out, so `world_size`
    ranks with batch size b see exactly the images, and the augmentation, of one process with batch size b × world_size.

    Every rank has the same number of batches, and no batch is empty:

    - `drop_last=True`: only full batches on every rank; the last n mod (b × world_size) of the order are left out.
    - `shuffle=True`: the order is padded with its own beginning to a multiple of `world_size`, at most
      `world_size` − 1 images twice.
    - otherwise (evaluation): each image exactly once over all ranks; the last two batches of some ranks are shorter.

    The images stay uint8 until a batch is needed, and live on the device if they take at most half of its free memory;
    otherwise they stay on the host, and each batch is gathered in pinned memory and copied.

    Args:
        split: images and labels.
        batch_size: images per batch on this rank.
        normalization: per-channel mean and std.
        device: where the batches appear.
        augmentation: random crops and mirroring; none by default.
        shuffle: a new random order each epoch, instead of the order of the source.
        seed: of the order and the augmentation; not negative.
        rank: which share of the order this process takes.
        world_size: number of shares.
        drop_last: leave out what does not fill a batch on every rank.
        channels_last: put images in `torch.channels_last` memory format.
        repeat: passes over the split in one epoch, each with its own order and augmentation; the last batch of a pass
            may be filled up from the next. For small splits.

    Raises: ConfigError for a number out of range, a normalization for another number of channels, or too few images
    for `world_size` ranks; DataError for an empty split.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        normalization: Normalization,
        *,
        device: torch.device | str,
        augmentation: Augmentation | None = None,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        channels_last: bool = False,
        repeat: int = 1,
    ) -> None:
        _check_numbers(batch_size=batch_size, world_size=world_size, repeat=repeat)
        if seed < 0 or not 0 <= rank < world_size:
            given = f"seed {seed}, rank {rank} of {world_size}"
            raise ConfigError(f"{given}: the seed must not be negative, and the rank lies in 0..{world_size - 1}")
        if len(split) == 0:
            raise DataError("cannot make batches of an empty split; expected at least one image")
        channels = split.images.shape[1]
        if len(normalization.mean) != channels:
            raise ConfigError(f"normalization is for {len(normalization.mean)} channels; the images have {channels}")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self._total = len(split) * repeat
        self._count, self._passes = len(split), repeat
        self._seed, self._shuffle, self._drop_last = seed, shuffle, drop_last
        self._augmentation = augmentation or Augmentation()
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._length = self._count_batches()
        self.device = torch.device(device)
        self._images = _store(split.images, self.device)
        self._labels = split.labels.to(self.device)
        std, mean = torch.tensor(normalization.std), torch.tensor(normalization.mean)
        self._scale = (1 / (255 * std)).view(1, channels, 1, 1).to(self.device)
        self._shift = (-mean / std).view(1, channels, 1, 1).to(self.device)

    def __len__(self) -> int:
        return self._length

    def _count_batches(self) -> int:
        together = self.batch_size * self.world_size
        batches = self._total // together if self._drop_last else -(-self._total // together)
        shortest = -(-self._total // self.world_size) if self._shuffle else self._total // self.world_size
        if batches == 0 or (not self._drop_last and shortest < batches):
            raise ConfigError(
                f"{self._total} images cannot give {self.world_size} ranks the same number of batches of "
                f"{self.batch_size}{' full' if self._drop_last else ''}; use "
                + (
                    "a smaller batch size, fewer ranks or drop_last=False"
                    if batches == 0
                    else "a larger batch size or fewer ranks"
                )
            )
        return batches

    def epoch(self, k: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `k`, counted from 0; the same each time it is asked for."""
        positions = self._positions() % self._total
        draws = self._augmentation.draw(self._total, _generator(self._seed, k, _AUGMENTATION))
        return self._walk(self._order(k)[positions], draws.take(positions))

    def _walk(self, indices: Tensor, draws: Draws) -> Iterator[tuple[Tensor, Tensor]]:
        on_device, draws = indices.to(self.device), draws.to(self.device)
        for start, stop in self._edges(len(indices)):
            part = slice(start, stop)
            images = self._augmentation.apply(self._images.take(indices[part], on_device[part]), draws[part])
            yield self._normalize(images), self._labels.index_select(0, on_device[part])

    def _order(self, k: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(self._count).repeat(self._passes)
        generator = _generator(self._seed, k, _ORDER)
        return torch.cat([torch.randperm(self._count, generator=generator) for _ in range(self._passes)])

    def _positions(self) -> Tensor:
        end = self._total
        if self._drop_last:
            end = self._length * self.batch_size * self.world_size
        elif self._shuffle:
            end = -(-self._total // self.world_size) * self.world_size
        return torch.arange(self.rank, end, self.world_size)

    def _edges(self, share: int) -> Iterator[tuple[int, int]]:
        # A rank whose share ends on a full batch while another has one image more gives its last image a batch of its
        # own: the number of batches must agree, as models synchronise once a batch.
        edges = [min(i * self.batch_size, share - (self._length - i)) for i in range(self._length)]
        return zip(edges, [*edges[1:], share], strict=True)

    def _normalize(self, images: Tensor) -> Tensor:
        # Converted first: one multiplication of mixed types is several times slower on the CPU.
        scaled = images.to(torch.float32).mul_(self._scale).add_(self._shift)
        return scaled.contiguous(memory_format=self._memory_format)


class _OnDevice:
    """All images on the device."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self._images = images.contiguous().to(device)

    def take(self, indices: Tensor, on_device: Tensor) -> Tensor:
        return self._images.index_select(0, on_device)


class _OnHost:
    """All images on the host; each batch is gathered there, in pinned memory, and copied."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self._images = images.contiguous().cpu()
        self._device = device

    def take(self, indices: Tensor, on_device: Tensor) -> Tensor:
        shape = (len(indices), *self._images.shape[1:])
        # torch keeps freed pinned blocks, and hands them out again only when their copy has ended.
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        return torch.index_select(self._images, 0, indices, out=batch).to(self._device, non_blocking=True)


def _store(images: Tensor, device: torch.device) -> _OnDevice | _OnHost:
    resident = device.type != "cuda" or images.is_cuda or images.nbytes <= _free_memory(device) // 2
    return _OnDevice(images, device) if resident else _OnHost(images, device)


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


def _generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    if epoch < 0:
        raise ConfigError(f"epoch is {epoch}; epochs are counted from 0")
    mixed = np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; expected a whole number from 1")
