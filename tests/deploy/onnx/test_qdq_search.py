"""The search for exact requantisations against counting, one whole number after another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lowbit.deploy.onnx.qdq_search import Chain, Requantisation, Step, Switch, requantise, thresholds

SINGLE = np.float32


def random_chain(seed: int, channels: int = 20) -> tuple[Chain, NDArray[np.int64], NDArray[np.int64]]:
    draw = np.random.default_rng(seed)
    last = int(2 ** draw.integers(1, 5) - 1)
    reach = int(draw.integers(10, 3000))

    def column(low: float, high: float) -> NDArray[np.float32]:
        return draw.uniform(low, high, (channels, 1)).astype(SINGLE)

    steps = [Step("Mul", (column(0.01, 0.1),)), Step("Mul", (column(-1, 1),)), Step("Add", (column(-2, 2),))]
    if seed % 2:
        steps.append(Step("Relu"))
    steps.append(Step("Mul", (np.full((1, 1), last * 20 / reach, SINGLE),)))
    switch = Switch("GreaterOrEqual", np.zeros((1, 1), SINGLE), 2, 0) if seed % 5 == 0 else None
    chain = Chain(
        channels, tuple(steps), 0 if switch else int(draw.integers(0, last + 1)), 0, 2 if switch else last, switch
    )
    return chain, -draw.integers(0, reach, channels), draw.integers(1, reach, channels)


@pytest.mark.parametrize("seed", range(30))
def test_every_sum_in_reach(seed: int) -> None:
    """The kernel's formula, written out again, against the chain for each whole number, and thresholds by counting."""
    chain, low, high = random_chain(seed)
    chain = replace(chain, first=int(chain.codes(np.stack([low, high], 1)).min()))
    found = requantise(chain, low, high, np.full(chain.channels, 60))
    assert isinstance(found, Requantisation)
    assert (found.multiplier > 0).all()
    for c in range(chain.channels):
        sums = np.arange(low[c], high[c] + 1)
        want = chain.part(c, c + 1).codes(sums[None])[0]
        scaled = (found.factor[c] * sums + found.bias[c]).astype(SINGLE) * found.multiplier[c]
        got = np.clip(np.rint(scaled.astype(np.float64)) + chain.zero_point, chain.first, chain.last)
        np.testing.assert_array_equal(got, want)
        sign = -1 if want[0] > want[-1] else 1
        ends = np.sort(sign * np.array([low[c], high[c]]))
        limits = thresholds(chain.part(c, c + 1), ends[:1], ends[1:], np.array([sign]))[0]
        below = (want[:, None] < np.arange(chain.first + 1, chain.last + 1)).sum(axis=0)
        np.testing.assert_array_equal(limits, ends[0] + below)


def one_channel(*steps: tuple[str, float], last: int, zero_point: int = 0) -> Chain:
    made = tuple(Step(operation, (np.full((1, 1), value, SINGLE),)) for operation, value in steps)
    return Chain(1, made, zero_point, 0, last)


def solve(chain: Chain, low: int, high: int, limit: int = 100) -> Requantisation | int:
    return requantise(chain, np.array([low]), np.array([high]), np.array([limit]))


def test_a_channel_that_is_almost_flat_takes_another_line() -> None:
    """Its own offset would be 4·10¹⁰, more than int32 holds; only one step is in reach."""
    chain = one_channel(("Mul", 1e-10), ("Add", 4.5), last=15)
    found = solve(chain, -1000, 1000)
    assert isinstance(found, Requantisation)
    assert abs(int(found.bias[0])) < 2**20


def test_constant_channels_need_no_factor() -> None:
    found = solve(one_channel(("Mul", 0.0), ("Add", 3.5), last=15, zero_point=2), -10, 10, 0)
    assert isinstance(found, Requantisation)
    assert (found.factor.item(), found.bias.item()) == (0, 4)


def test_the_channel_without_a_solution_is_named() -> None:
    chain = Chain(70, (Step("Mul", (np.full((70, 1), 0.037, SINGLE),)), Step("Add", (column(70, 66),))), 0, 0, 255)
    assert requantise(chain, np.full(70, -9000), np.full(70, 9000), np.ones(70, np.int64)) == 66


def column(channels: int, odd: int) -> NDArray[np.float32]:
    """0 everywhere but in one channel."""
    value = np.zeros((channels, 1), SINGLE)
    value[odd] = 0.123
    return value


def test_sums_that_float32_rounds() -> None:
    """Beyond 2²⁴ the chain rounds N itself, and its thresholds jump: one line passes one of them, but not fifteen."""
    steps, ends = (("Mul", 0.0009), ("Add", -0.0009 * 2**26)), (2**26 - 20_000, 2**26 + 20_000)
    assert isinstance(solve(one_channel(*steps, last=1), *ends), Requantisation)
    assert solve(one_channel(*steps, last=15), *ends) == 0


@pytest.mark.parametrize("high", [2**31 - 1, 2**31 - 2**24])
def test_offsets_stay_within_int32(high: int) -> None:
    chain = one_channel(("Mul", 2**-29), last=3)
    found = solve(chain, -high, high)
    if isinstance(found, Requantisation):
        assert abs(int(found.factor[0])) * high + abs(int(found.bias[0])) < 2**31
