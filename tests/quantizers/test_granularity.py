"""Which elements share a scale: block views and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit._errors import ConfigError
from lowbit.quantizers import PerChannel, PerGroup, PerTensor
from lowbit.quantizers.granularity import as_granularity
from straddling import noise


@given(shape=st.lists(st.integers(1, 5), min_size=2, max_size=4), axis=st.integers(0, 1), size=st.integers(1, 6))
def test_blocks_and_restore_undo_each_other(shape: list[int], axis: int, size: int) -> None:
    x = noise(*shape)
    for granularity in (PerTensor(), PerChannel(axis), PerGroup(size, axis)):
        rest = x.numel() // x.shape[axis]
        if isinstance(granularity, PerGroup) and rest % size:
            with pytest.raises(ConfigError, match=f"group size {size} does not divide the {rest} weights"):
                granularity.blocks(x)
            continue
        blocks = granularity.blocks(x)
        assert torch.equal(granularity.restore(blocks, x), x)
        dims = granularity.shared_dims(blocks.ndim)
        reduced = blocks.sum(dims, keepdim=True) if len(dims) < blocks.ndim else blocks.sum()
        assert tuple(reduced.shape) == granularity.scale_shape(tuple(shape))


def test_a_group_stays_within_its_channel() -> None:
    x = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert PerGroup(6).blocks(x).tolist() == [[[*range(6)], [*range(6, 12)]], [[*range(12, 18)], [*range(18, 24)]]]
    by_input = PerGroup(4, axis=1).blocks(x)  # a transposed convolution has its output channels second
    assert by_input[0].tolist() == [[0, 1, 2, 3], [12, 13, 14, 15]]


def test_specs() -> None:
    assert as_granularity("tensor") == PerTensor()
    assert as_granularity("channel", axis=1) == PerChannel(1)
    assert as_granularity("group:64", axis=1) == PerGroup(64, 1)
    own = PerGroup(3)
    assert as_granularity(own) is own
