"""What every registered quantizer's codes must survive: packing and unpacking, at any length."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowbit.deploy import pack_codes, unpack_codes
from lowbit.quantizers import QUANTIZERS, AbstractQuantizer, PerGroup

EXAMPLES = [
    pytest.param(example, id=f"{name}-{place}")
    for name, cls in QUANTIZERS.items()
    for place, example in enumerate(cls.examples())
]
every_example = pytest.mark.parametrize("example", EXAMPLES)


def slow_pack(indices: list[int], bits: int) -> list[int]:
    stream = sum(index << (place * bits) for place, index in enumerate(indices))
    return list(stream.to_bytes(-(-len(indices) * bits // 8), "little"))


def tensor_for(quantizer: AbstractQuantizer, rows: int, columns: int, seed: int) -> Tensor:
    """Values over the whole grid and beyond, in rows that groups divide where there are groups."""
    granularity = quantizer.granularity
    unit = granularity.size if isinstance(granularity, PerGroup) else 1
    return torch.randn(rows, unit * columns, generator=torch.Generator().manual_seed(seed)) * 3


@every_example
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 19), seed=st.integers(0, 2**16))
def test_unpacking_gives_the_codes_back(example: AbstractQuantizer, rows: int, columns: int, seed: int) -> None:
    quantizer = copy.deepcopy(example)  # a learned scale takes its first value from the first tensor
    x = tensor_for(quantizer, rows, columns, seed)
    codes = quantizer.codes(x)
    packed = pack_codes(quantizer, x)
    grid = quantizer.grid
    levels = list(range(grid.low, grid.high + 1, grid.step))
    assert packed.tolist() == slow_pack([levels.index(code) for code in codes.reshape(-1).tolist()], grid.bits)
    back = unpack_codes(quantizer, packed, tuple(x.shape))
    assert back.dtype == codes.dtype
    assert torch.equal(back, codes)


@every_example
def test_every_level_has_an_index_of_its_own(example: AbstractQuantizer) -> None:
    quantizer = copy.deepcopy(example)
    grid = quantizer.grid
    assert grid.count <= 2**grid.bits < max(2 * grid.count, 3)  # and no bit too many
    codes = torch.arange(grid.low, grid.high + 1, grid.step, dtype=torch.int16)
    packed = torch.tensor(slow_pack(list(range(grid.count)), grid.bits), dtype=torch.uint8)
    assert torch.equal(unpack_codes(quantizer, packed, (grid.count,)), codes)


@every_example
def test_the_packed_size_is_what_the_grid_promises(example: AbstractQuantizer) -> None:
    quantizer = copy.deepcopy(example)
    x = tensor_for(quantizer, 3, 5, seed=0)
    assert len(pack_codes(quantizer, x)) == math.ceil(x.numel() * quantizer.grid.bits / 8)
