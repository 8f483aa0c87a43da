"""What follows an integer sum: a chain of float32 operations per channel, and the integer thresholds equal to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lowbit.layers import FakeQuantize
from lowbit.quantizers.staircase import ceil_slack


@dataclass(frozen=True)
class Affine:
    """y·factor or y + term, one number per channel (or one for all); one rounding."""

    kind: Literal["multiply", "add"]
    row: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        """`y` has the channels first."""
        row = self.row.reshape(-1, *[1] * (y.ndim - 1))
        return y * row if self.kind == "multiply" else y + row


@dataclass(frozen=True)
class Rectify:
    """max(y, 0)."""

    def __call__(self, y: Tensor) -> Tensor:
        """Any shape."""
        return y.relu()


@dataclass(frozen=True)
class AddValue:
    """y + another value of the network."""

    value: int


Step: TypeAlias = Affine | Rectify | AddValue


@dataclass(frozen=True)
class Staircase:
    """A quantizer as the kernels know it: u = index of the code, n = low + step·u.

    Args:
        bits: width of u.
        low, step: what the whole numbers are.
        rounding: "nearest", "up" or "sign".
        reciprocal: r, for z = y·r.
        least, most: where z is clipped.
        unit: what n is a multiple of.
    """

    bits: int
    low: int
    step: int
    rounding: Literal["nearest", "up", "sign"]
    reciprocal: float
    least: float
    most: float
    unit: Tensor

    @property
    def keep(self) -> float:
        """What z is multiplied by before it is rounded up."""
        return 1 - ceil_slack(torch.float32)

    def index(self, y: Tensor) -> Tensor:
        """u (int64), shape of y."""
        if self.rounding == "sign":
            return (y >= 0).long()
        z = (y * torch.tensor(self.reciprocal, dtype=torch.float32)).clamp(self.least, self.most)
        codes = z.mul(self.keep).ceil() if self.rounding == "up" else z.round()
        return codes.long() - int(self.least)


def staircase_of(quantize: FakeQuantize) -> Staircase | None:
    """The quantizer of an activation, if the kernels know its kind, else None."""
    quantizer = quantize.quantizer
    grid = quantizer.integer_grid
    scale = quantizer.scale(torch.zeros(())).detach().float()
    if scale.numel() != 1 or grid.count != 2**grid.bits:
        return None
    common: dict[str, Any] = {"bits": grid.bits, "low": grid.low, "step": grid.step, "unit": quantizer.unit(scale)}
    if grid.binary:
        return Staircase(rounding="sign", reciprocal=1.0, least=0, most=1, **common)
    if quantizer.rounding is None:
        return None
    rounding: Literal["nearest", "up"] = "up" if quantizer.rounding == "ceil" else "nearest"
    return Staircase(rounding=rounding, reciprocal=float(scale.reciprocal()), least=grid.low, most=grid.high, **common)


def run_chain(sums: Tensor, chain: list[Step]) -> Tensor:
    """float32 results of a chain without `AddValue`, for whole numbers with the channels first."""
    y = sums.float()
    for step in chain:
        assert not isinstance(step, AddValue)
        y = step(y)
    return y


def monotone(chain: list[Step], channels: int) -> Tensor | None:
    """For each channel whether a chain falls as its argument rises, or None where it adds another value.

    Products, sums and ReLUs are monotone with their roundings. Returns: bool, shape (channels,).
    """
    falling = torch.zeros(channels, dtype=torch.bool)
    for step in chain:
        if isinstance(step, AddValue):
            return None
        if isinstance(step, Affine) and step.kind == "multiply":
            falling = falling ^ (step.row.detach().reshape(-1) < 0)
    return falling


def thresholds(chain: list[Step], staircase: Staircase, bound: Tensor) -> tuple[Tensor, Tensor]:
    """The integer thresholds that stand for a chain and the quantizer behind it.

    u(N) is monotone in N for each channel. Where it rises, `u(N) = #{j: N ≥ T_j}`; where it falls,
    `u(N) = L − #{j: N ≥ T_j}` with L = 2^bits − 1. Found by bisection over the chain itself, so that they reproduce its
    every rounding.

    Args:
        chain: what happens to the sum N, see `run_chain`.
        staircase: the quantizer.
        bound: int64, shape (C,): |N| is at most this.

    Returns:
        T: int32, shape (C, L), ascending; bound + 1 where no sum in reach gets there.
        falling: bool, shape (C,).
    """
    levels = 2**staircase.bits - 1
    bound = bound.long()

    def rank(sums: Tensor, falling: Tensor) -> Tensor:
        index = staircase.index(run_chain(sums, chain))
        return torch.where(falling[:, None], levels - index, index)

    rising = torch.zeros(len(bound), dtype=torch.bool)
    ends = rank(torch.stack([-bound, bound], 1), rising)
    falling = ends[:, 1] < ends[:, 0]
    wanted = torch.arange(1, levels + 1).expand(len(bound), levels)
    low = -bound[:, None].expand(-1, levels).clone()  # the least N that may reach the level
    high = bound[:, None].expand(-1, levels) + 1  # the least known to reach it, or beyond reach
    while bool((low < high).any()):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        reached = rank(middle, falling) >= wanted
        active = low < high
        high = torch.where(active & reached, middle, high)
        low = torch.where(active & ~reached, middle + 1, low)
    return high.int(), falling
