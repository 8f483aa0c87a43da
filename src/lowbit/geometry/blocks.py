"""Blocks of a tensor: the pieces that each carry a metric of their own."""

from __future__ import annotations

from typing import Literal

from torch import Size, Tensor
from torch.nn import functional as F

from lowbit._errors import ConfigError

Block = int | Literal["layer", "channel"]


def check_block(block: Block, owner: str) -> None:
    """Raises: ConfigError, naming `owner` (such as "estimator 'lne'"), unless `block` is one."""
    if block not in ("layer", "channel") and not (isinstance(block, int) and block > 0):
        raise ConfigError(f"block={block!r} of {owner} must be layer, channel or a positive group size")


def to_blocks(x: Tensor, block: Block) -> Tensor:
    """A tensor as the rows (b, n): the whole of it, its output channels (first dimension), or groups of fixed size.

    The last group is filled with zeros: u = tanh(0) = 0 there, so that they change nothing.
    """
    if block == "layer":
        return x.reshape(1, -1)
    if block == "channel":
        return x.reshape(x.shape[0] if x.ndim else 1, -1)
    return F.pad(x.reshape(-1), (0, -x.numel() % block)).reshape(-1, block)


def from_blocks(blocks: Tensor, shape: Size) -> Tensor:
    """The inverse of `to_blocks` for a tensor of shape `shape`: (b, n) → shape."""
    return blocks.reshape(-1)[: shape.numel()].reshape(shape)
