"""The arithmetic behind `lowbit.deploy.onnx.qdq`: a float chain as thresholds, and a requantisation that meets them.

A low-bit layer gives whole numbers N; a chain of float32 operations, each rounded once, makes a code of N. Such a
chain is monotone in N, so that it is its thresholds: `T_j`, the smallest N in reach whose code is j or more. The fused
int8 kernels of ONNX Runtime compute, with f, B and μ for each output channel,

    code = clip(round_half_even(float(f·N + B)·μ) + z),      one conversion, one product, both rounded to float32,

which is monotone too. So the two agree for every N in reach as soon as they agree about `T_j` and `T_j − 1` for all j:
that is what `requantise` proves, by computing them. It finds candidates in float64: with `b = B/f`, `l = 1/(μ·f)` and
`h_j = j − z − 1/2`, code ≥ j means `(N + b)/l ≥ h_j` up to rounding, so that the conditions are linear in (l, b):

    h_j·l ≤ T_j + b,      h_j·l ≥ T_j − 1 + b      for all j.

For a given b they are an interval of l, whose length is concave in b.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
Single = NDArray[np.float32]
Double = NDArray[np.float64]
Apply = Callable[[Single, tuple[Single, ...]], Single]
Shift = Callable[[Double, Double, tuple[Double, ...]], tuple[Double, Double]]

_INT32 = 2**31 - 1
_BLOCK = 64  # channels at a time: a layer that cannot be fused is found out early, and memory stays small
_STEPS = 48  # of the ternary search: b is then known to 2·(2/3)^48 ≈ 7e-9

# Every operation is monotone in its argument, and NumPy rounds each of them once, as ONNX does.
_APPLY: dict[str, Apply] = {
    "Mul": lambda x, c: x * c[0],
    "Add": lambda x, c: x + c[0],
    "Sub": lambda x, c: x - c[0],
    "SubFrom": lambda x, c: c[0] - x,
    "Div": lambda x, c: x / c[0],
    "Neg": lambda x, c: -x,
    "Relu": lambda x, c: np.maximum(x, np.float32(0)),
    "Max": lambda x, c: np.maximum(x, c[0]),
    "Min": lambda x, c: np.minimum(x, c[0]),
    "Ceil": lambda x, c: np.ceil(x),
    "Floor": lambda x, c: np.floor(x),
    "Round": lambda x, c: np.rint(x),
    "Identity": lambda x, c: x,
}
# What they do to slope and offset of the line that the chain follows between its bends; the others leave it alone.
_SHIFT: dict[str, Shift] = {
    "Mul": lambda a, o, c: (a * c[0], o * c[0]),
    "Add": lambda a, o, c: (a, o + c[0]),
    "Sub": lambda a, o, c: (a, o - c[0]),
    "SubFrom": lambda a, o, c: (-a, c[0] - o),
    "Div": lambda a, o, c: (a / c[0], o / c[0]),
    "Neg": lambda a, o, c: (-a, -o),
    "Ceil": lambda a, o, c: (a, o + 0.5),
    "Floor": lambda a, o, c: (a, o - 0.5),
}
OPERATIONS = frozenset(_APPLY)


@dataclass(frozen=True)
class Step:
    """One elementwise float32 operation: its name and its constants, each of shape (1, 1) or (channels, 1)."""

    operation: str
    constants: tuple[Single, ...] = ()


@dataclass(frozen=True)
class Switch:
    """A quantizer of two levels: `above` where the value compares true with the constant, `below` elsewhere."""

    comparison: str
    constant: Single
    above: int
    below: int


_COMPARE: dict[str, Callable[[Single, Single], NDArray[np.bool_]]] = {
    "GreaterOrEqual": lambda x, c: x >= c,
    "Greater": lambda x, c: x > c,
    "LessOrEqual": lambda x, c: x <= c,
    "Less": lambda x, c: x < c,
}
COMPARISONS = frozenset(_COMPARE)


@dataclass(frozen=True)
class Chain:
    """What happens to a sum N: `float32(N)`, the steps, the rounding (or the switch), the clip to [first, last].

    `codes` gives uint8 codes; `zero_point` is added after rounding half to even. With a switch it is not used.
    """

    channels: int
    steps: tuple[Step, ...]
    zero_point: int
    first: int
    last: int
    switch: Switch | None = None

    def values(self, sums: Int) -> Single:
        """The real numbers before the last rounding, float32. sums: int64, shape (channels, n); same shape back."""
        value = sums.astype(np.float32)
        with np.errstate(all="ignore"):  # overflows are saturated later on; the caller refuses chains that make NaN
            for step in self.steps:
                value = _APPLY[step.operation](value, step.constants)
        return np.broadcast_to(value, sums.shape)

    def codes(self, sums: Int) -> Int:
        """The codes of the sums, exactly as the float32 chain gives them. Shape (channels, n), both ways."""
        value = self.values(sums)
        if self.switch is not None:
            truth = _COMPARE[self.switch.comparison](value, self.switch.constant)
            codes = np.where(truth, self.switch.above, self.switch.below).astype(np.int64)
        else:
            codes = _round(value, self.zero_point)
        return np.clip(codes, self.first, self.last)

    def line(self) -> tuple[Double, Double]:
        """Slope and offset, float64, shape (channels,): the code without its zero point is about `slope·N + offset`."""
        slope, offset = np.ones((self.channels, 1)), np.zeros((self.channels, 1))
        with np.errstate(all="ignore"):
            for step in self.steps:
                if step.operation in _SHIFT:
                    constants = tuple(value.astype(np.float64) for value in step.constants)
                    slope, offset = _SHIFT[step.operation](slope, offset, constants)
            if self.switch is not None:  # a line steep enough to pass all levels between two whole numbers
                offset = (offset - self.switch.constant) / slope
                rises = (self.switch.above > self.switch.below) == self.switch.comparison.startswith("Greater")
                slope = np.sign(slope) * (1 if rises else -1) * 4.0 * (self.last - self.first)
                offset = slope * offset + (self.first + self.last) / 2
        return slope[:, 0], offset[:, 0]

    def part(self, start: int, stop: int) -> Chain:
        """The chain of the channels start … stop − 1."""
        steps = tuple(
            replace(step, constants=tuple(_rows(c, start, stop) for c in step.constants)) for step in self.steps
        )
        switch = self.switch and replace(self.switch, constant=_rows(self.switch.constant, start, stop))
        return replace(self, channels=min(stop, self.channels) - start, steps=steps, switch=switch)


@dataclass(frozen=True)
class Requantisation:
    """`code = clip(round_half_even(float32(factor·N + bias)·multiplier) + zero_point)`; each of shape (channels,).

    factor: int64; negative where the codes fall as N rises, 0 for a constant. bias: int64, within int32.
    multiplier: float32, positive.
    """

    factor: Int
    bias: Int
    multiplier: Single


def requantise(chain: Chain, low: Int, high: Int, limit: Int) -> Requantisation | int:
    """The requantisation that gives the codes of the chain, for every sum in reach; proven, never approximate.

    Args:
        chain: monotone in N, for each channel.
        low: the smallest sum of each channel, shape (channels,).
        high: the largest.
        limit: the largest |factor| of each channel, 0 where none is allowed but a constant.

    Returns:
        The one with the smallest factors, or the first channel that has none.
    """
    parts = []
    for start in range(0, chain.channels, _BLOCK):
        block = slice(start, start + _BLOCK)
        found, solved = _Block.of(chain.part(start, start + _BLOCK), low[block], high[block]).solve(limit[block])
        if not solved.all():
            return start + int(np.argmin(solved))
        parts.append(found)
    return Requantisation(
        np.concatenate([part.factor for part in parts]),
        np.concatenate([part.bias for part in parts]),
        np.concatenate([part.multiplier for part in parts]),
    )


def thresholds(chain: Chain, low: Int, high: Int, sign: Int) -> Int:
    """`T_j`: the smallest M in low … high with `code(sign·M) ≥ j`, or high + 1; for j = first + 1 … last.

    Returns: int64, shape (channels, last − first). The code must rise with M.
    """
    index = np.arange(chain.first + 1, chain.last + 1)
    below = np.repeat(low[:, None], len(index), axis=1)
    above = np.repeat(high[:, None] + 1, len(index), axis=1)
    while (below < above).any():
        middle = (below + above) >> 1
        reached = (chain.codes(sign[:, None] * middle) >= index) | (below >= above)
        above = np.where(reached, middle, above)
        below = np.where(reached, below, middle + 1)
    return above


@dataclass(frozen=True)
class _Block:
    """The conditions on a few channels, turned so that the codes rise with M = sign·N, low ≤ M ≤ high."""

    chain: Chain
    sign: Int
    low: Int
    high: Int
    constant: Int  # the code of a channel that has only one, −1 elsewhere
    limits: Int  # T_j
    length: Double  # where to look for l
    shift: Double  # where to look for b

    @staticmethod
    def of(chain: Chain, low: Int, high: Int) -> _Block:
        ends = chain.codes(np.stack([low, high], axis=1))
        sign = np.where(ends[:, 1] >= ends[:, 0], 1, -1)
        low, high = np.where(sign > 0, low, -high), np.where(sign > 0, high, -low)
        limits = thresholds(chain, low, high, sign)
        slope, offset = chain.line()
        with np.errstate(all="ignore"):
            length, shift = 1 / (sign * slope), offset / (sign * slope)
        usable = np.isfinite(length) & np.isfinite(shift) & (length > 0)
        constant = np.where(ends[:, 0] == ends[:, 1], ends[:, 0], -1)
        block = _Block(
            chain, sign, low, high, constant, limits, np.where(usable, length, 1), np.where(usable, shift, 0)
        )
        return block._with_single_steps(ends.min(axis=1), ends.max(axis=1))

    def _with_single_steps(self, least: Int, most: Int) -> _Block:
        """A channel with only one step in reach takes any line through it; its own may be almost flat, b too large."""
        if not self.limits.shape[1]:
            return self
        lone = most == least + 1
        at = np.take_along_axis(self.limits, (np.minimum(most, self.chain.last) - self.chain.first - 1)[:, None], 1)[
            :, 0
        ]
        length = 2.0 * np.maximum(at - self.low, self.high - at) + 2
        shift = (most - self.chain.zero_point - 0.5) * length - at + 0.5
        return replace(self, length=np.where(lone, length, self.length), shift=np.where(lone, shift, self.shift))

    def solve(self, limit: Int) -> tuple[Requantisation, NDArray[np.bool_]]:
        """Factors from 1 upwards for all channels at once; each keeps the first that is proven."""
        done = self.constant >= 0
        factor = np.zeros_like(self.sign)
        bias = np.where(done, self.constant - self.chain.zero_point, 0)
        multiplier = np.ones(len(done), np.float32)
        best = self._best_shift()
        for f in range(1, int(limit.max(initial=0)) + 1):
            if done.all():
                break
            for tried, scale in self._candidates(f, best):
                new = ~done & (limit >= f) & self._proven(f, tried, scale)
                factor, bias = np.where(new, f * self.sign, factor), np.where(new, tried, bias)
                multiplier = np.where(new, scale, multiplier)
                done = done | new
        return Requantisation(factor, bias, multiplier), done

    def _candidates(self, f: int, best: Double) -> list[tuple[Int, Single]]:
        """(B, μ) for the factor f: the chain's own line, which has its ties, then those with the most room."""
        bound = float(_INT32)
        pairs = []
        own = np.clip(np.rint(f * self.shift), -bound, bound).astype(np.int64)
        pairs.append((own, _multiplier(f * self.length)))
        for whole in (np.floor(f * best), np.ceil(f * best), own):
            tried = np.clip(whole, -bound, bound).astype(np.int64)
            least, most = self._interval(tried / f)
            pairs.append((tried, _multiplier(f * (least + most) / 2)))
        return pairs

    def _interval(self, shift: Double) -> tuple[Double, Double]:
        """The l allowed for each channel by its conditions at b = shift: [least, most], empty where least > most."""
        height = np.arange(self.chain.first + 1, self.chain.last + 1) - self.chain.zero_point - 0.5
        reached = np.where(self.limits <= self.high[:, None], (self.limits + shift[:, None]) / height, np.nan)
        missed = np.where(self.limits > self.low[:, None], (self.limits - 1 + shift[:, None]) / height, np.nan)
        positive = height > 0  # the sign of h_j turns the inequalities round
        most = np.fmin.reduce(np.where(positive, reached, missed), axis=1, initial=np.nan)
        least = np.fmax.reduce(np.where(positive, missed, reached), axis=1, initial=np.nan)
        return np.fmax(least, self.length / 4), np.fmin(most, self.length * 4)

    def _best_shift(self) -> Double:
        """The b within 1 of the chain's own at which most l are allowed: the maximum of a concave function."""
        start, stop = self.shift - 1, self.shift + 1
        for _ in range(_STEPS):
            third = (stop - start) / 3
            left, right = self._width(start + third), self._width(stop - third)
            start, stop = np.where(left < right, start + third, start), np.where(left < right, stop, stop - third)
        return (start + stop) / 2

    def _width(self, shift: Double) -> Double:
        least, most = self._interval(shift)
        return most - least

    def _proven(self, f: int, bias: Int, multiplier: Single) -> NDArray[np.bool_]:
        """Whether the kernel's own arithmetic gives `code ≥ j` at T_j and `code < j` at T_j − 1, for all j in reach."""
        index = np.arange(self.chain.first + 1, self.chain.last + 1)
        reached = self._kernel(f * self.limits + bias[:, None], multiplier) >= index
        missed = self._kernel(f * (self.limits - 1) + bias[:, None], multiplier) < index
        right = (reached | (self.limits > self.high[:, None])) & (missed | (self.limits <= self.low[:, None]))
        ends = np.maximum(np.abs(f * self.low + bias), np.abs(f * self.high + bias))
        return right.all(axis=1) & (ends <= _INT32) & (np.abs(bias) <= _INT32)

    def _kernel(self, accumulator: Int, multiplier: Single) -> Int:
        with np.errstate(all="ignore"):
            codes = _round(accumulator.astype(np.float32) * multiplier[:, None], self.chain.zero_point)
        return np.clip(codes, self.chain.first, self.chain.last)


def _multiplier(inverse: Double) -> Single:
    """1/inverse as a float32; 1 where that is not a positive normal number (the proof refuses it then)."""
    with np.errstate(all="ignore"):
        value = (1 / inverse).astype(np.float32)
    return np.where(np.isfinite(value) & (value >= np.finfo(np.float32).tiny), value, np.float32(1))


def _round(value: Single, zero_point: int) -> Int:
    """Rounded half to even, plus the zero point, saturated to 0 … 255."""
    bounded = np.clip(value, np.float32(-zero_point), np.float32(255 - zero_point))
    return np.rint(bounded).astype(np.int64) + zero_point


def _rows(constant: Single, start: int, stop: int) -> Single:
    return constant[start:stop] if constant.shape[0] > 1 else constant
