"""Granularity: which elements of a tensor share one scale.

| granularity | input shape | scale shape |
| --- | --- | --- |
| `PerTensor()` | (O, I, K, K) | () |
| `PerChannel(axis=0)` | (O, I, K, K) | (O, 1, 1, 1) |
| `PerGroup(size=9)` | (O, I, K, K), seen as (O, I·K·K / 9, 9) | (O, I·K·K / 9, 1) |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from lowbit._errors import ConfigError


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""

    def blocks(self, x: Tensor) -> Tensor:
        """`x`, viewed so that one scale broadcasts over the elements that share it."""
        return x

    def restore(self, blocks: Tensor, x: Tensor) -> Tensor:
        """Undo `blocks` for a result of the same shape."""
        return blocks

    def shared_dims(self, ndim: int) -> tuple[int, ...]:
        """The dimensions of a block view of `ndim` dimensions that share one scale."""
        return tuple(range(ndim))

    def scale_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """Shape of the scale for a tensor of `shape`."""
        return ()


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index along `axis` (0: output channels of a weight; 1: channels of an activation)."""

    axis: int = 0

    def blocks(self, x: Tensor) -> Tensor:
        """`x` itself: the scale keeps its dimensions."""
        return x

    def restore(self, blocks: Tensor, x: Tensor) -> Tensor:
        """Undo `blocks`."""
        return blocks

    def shared_dims(self, ndim: int) -> tuple[int, ...]:
        """Every dimension but `axis`."""
        return tuple(d for d in range(ndim) if d != self.axis % ndim)

    def scale_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """(1, …, C, …, 1). Raises: ConfigError when the shape is unknown."""
        if shape is None:
            raise ConfigError(
                "a learned per-channel scale needs the tensor's shape beforehand; use granularity 'tensor'"
            )
        return tuple(n if d == self.axis % len(shape) else 1 for d, n in enumerate(shape))


@dataclass(frozen=True)
class PerGroup:
    """One scale for every `size` consecutive weights of an output channel."""

    size: int
    axis: int = 0

    def blocks(self, x: Tensor) -> Tensor:
        """(C, rest / size, size). Raises: ConfigError when the size does not divide the weights of a channel."""
        moved = x.movedim(self.axis, 0)
        rest = moved[0].numel()
        if rest % self.size:
            raise ConfigError(
                f"group size {self.size} does not divide the {rest} weights of a channel (shape {tuple(x.shape)}); "
                "choose a divisor, or keep this layer per channel"
            )
        return moved.reshape(moved.shape[0], rest // self.size, self.size)

    def restore(self, blocks: Tensor, x: Tensor) -> Tensor:
        """Undo `blocks`."""
        moved = x.movedim(self.axis, 0)
        return blocks.reshape(moved.shape).movedim(0, self.axis)

    def shared_dims(self, ndim: int) -> tuple[int, ...]:
        """The last dimension of the block view."""
        return (ndim - 1,)

    def scale_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """(C, rest / size, 1). Raises: ConfigError when the shape is unknown."""
        if shape is None:
            raise ConfigError("groups are for weights; an activation takes granularity 'tensor' or 'channel'")
        rest = 1
        for d, n in enumerate(shape):
            rest *= 1 if d == self.axis % len(shape) else n
        return (shape[self.axis], rest // self.size, 1)


Granularity: TypeAlias = PerTensor | PerChannel | PerGroup


def as_granularity(spec: str | Granularity, axis: int = 0) -> Granularity:
    """`"tensor"`, `"channel"` or `"group:64"` as an object; an object passes through.

    Raises: ConfigError for anything else.
    """
    if not isinstance(spec, str):
        return spec
    if spec == "tensor":
        return PerTensor()
    if spec == "channel":
        return PerChannel(axis)
    kind, _, size = spec.partition(":")
    if kind == "group" and size.isdigit() and int(size) > 0:
        return PerGroup(int(size), axis)
    raise ConfigError(f"granularity '{spec}' is not 'tensor', 'channel' or 'group:SIZE' (for example 'group:64')")
