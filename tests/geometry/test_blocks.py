"""Blocks of a tensor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit._errors import ConfigError
from lowbit.geometry import Block, LNEMetric, check_block, from_blocks, to_blocks
from straddling import noise
from tolerances import assert_close

shapes = st.lists(st.integers(1, 5), max_size=4)
blocks = st.one_of(st.sampled_from(["layer", "channel"]), st.integers(1, 50))


@given(shape=shapes, block=blocks)
def test_there_and_back(shape: list[int], block: Block) -> None:
    x = noise(*shape)
    rows = to_blocks(x, block)
    assert rows.ndim == 2
    assert torch.equal(from_blocks(rows, x.shape), x)
    if isinstance(block, int):
        assert rows.shape == (-(-x.numel() // block), block)
    else:
        assert rows.shape[0] == (1 if block == "layer" or not shape else shape[0])


def test_rows_are_channels_or_consecutive_weights_and_the_rest_is_zero() -> None:
    x = torch.arange(1.0, 13).reshape(2, 3, 2)
    assert torch.equal(to_blocks(x, "channel"), x.reshape(2, 6))
    assert torch.equal(to_blocks(x, 5)[-1], torch.tensor([11.0, 12, 0, 0, 0]))


def test_padding_changes_nothing() -> None:
    w, v = noise(7, dtype=torch.float64), noise(7, seed=1, dtype=torch.float64)
    padded = LNEMetric(to_blocks(w, 10), 0.2).solve(to_blocks(v, 10))
    assert_close(from_blocks(padded, v.shape), LNEMetric(w, 0.2).solve(v), "dense")


@pytest.mark.parametrize("block", ["row", 0, -3, 2.0])
def test_others_are_refused(block: object) -> None:
    with pytest.raises(ConfigError, match=r"of method 'ricci' must be layer, channel or a positive group size"):
        check_block(block, "method 'ricci'")  # type: ignore[arg-type]
