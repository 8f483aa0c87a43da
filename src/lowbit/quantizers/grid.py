"""The grid of a quantizer: which integers it may emit."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """The integers a quantizer may emit: low, low + step, …, high.

    `zero` is the point, in step units, that stands for the real number 0.
    """

    low: int
    high: int
    step: int = 1
    zero: float = 0.0

    @property
    def count(self) -> int:
        """Number of levels."""
        return (self.high - self.low) // self.step + 1

    @property
    def bits(self) -> int:
        """Bits that a packed code takes."""
        return max(1, math.ceil(math.log2(self.count)))

    @property
    def one_sided(self) -> bool:
        """Whether the codes rise from one that stands for 0, as those of a quantized ReLU."""
        return self.low == 0 and self.zero == 0

    @property
    def binary(self) -> bool:
        """Whether the codes are the two signs −1 and +1."""
        return (self.low, self.high, self.step) == (-1, 1, 2)
