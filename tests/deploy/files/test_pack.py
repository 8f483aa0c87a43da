"""Packing against a slow twin: one big Python integer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowbit._errors import ConfigError, DataError
from lowbit.deploy import pack, pack_codes, packed_size, unpack, unpack_codes
from lowbit.quantizers import build_quantizer

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
every_width = pytest.mark.parametrize("bits", range(1, 9))


def slow_pack(indices: list[int], bits: int) -> list[int]:
    stream = sum(index << (place * bits) for place, index in enumerate(indices))
    return list(stream.to_bytes(-(-len(indices) * bits // 8), "little"))


def random_indices(count: int, bits: int) -> Tensor:
    return torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)


@st.composite
def width_and_indices(draw: st.DrawFn) -> tuple[int, list[int]]:
    bits = draw(st.integers(1, 8))
    return bits, draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))


@settings(max_examples=150, deadline=None)
@given(width_and_indices())
def test_the_stream_is_the_big_integer_and_back(case: tuple[int, list[int]]) -> None:
    bits, indices = case
    packed = pack(torch.tensor(indices, dtype=torch.uint8), bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == slow_pack(indices, bits)
    assert unpack(packed, bits, len(indices)).tolist() == indices


@every_width
def test_every_ragged_length(bits: int) -> None:
    for count in range(34):
        indices = random_indices(count, bits)
        packed = pack(indices, bits)
        assert packed.tolist() == slow_pack(indices.tolist(), bits), count
        back = unpack(packed, bits, count)
        assert back.dtype == torch.uint8
        assert torch.equal(back, indices), count


def test_the_documented_example() -> None:
    assert pack(torch.tensor([1, 2, 7]), 3).tolist() == [209, 1]


def test_the_lowest_bits_come_first_and_the_last_byte_ends_in_zeros() -> None:
    assert pack(torch.tensor([1, 0, 0]), 1).tolist() == [0b001]
    assert pack(torch.tensor([0, 0, 1]), 1).tolist() == [0b100]
    assert pack(torch.tensor([7, 7, 7]), 3).tolist() == [0b11111111, 0b1]


@every_width
def test_all_ones_and_all_zeros(bits: int) -> None:
    top = torch.full((19,), 2**bits - 1, dtype=torch.uint8)
    assert pack(top, bits).tolist() == slow_pack(top.tolist(), bits)
    assert torch.equal(unpack(pack(top, bits), bits, 19), top)
    assert not pack(torch.zeros_like(top), bits).any()


@pytest.mark.parametrize("dtype", INTEGERS)
def test_any_integer_dtype_shape_and_stride(dtype: torch.dtype) -> None:
    indices = random_indices(60, 5).to(dtype).reshape(3, 4, 5)
    turned = indices.permute(2, 0, 1)
    assert pack(turned, 5).tolist() == slow_pack(turned.reshape(-1).tolist(), 5)
    assert torch.equal(indices.reshape(-1).to(torch.uint8), random_indices(60, 5))  # the input is not written to


def test_eight_bits_are_a_copy() -> None:
    indices = random_indices(9, 8)
    packed = pack(indices, 8)
    assert torch.equal(packed, indices)
    packed.zero_()
    assert torch.equal(indices, random_indices(9, 8))


@pytest.mark.parametrize("bits", [0, 9, -1, 2.0, True, "2"])
def test_a_width_that_does_not_exist(bits: object) -> None:
    with pytest.raises(ConfigError, match="expected a whole number from 1 to 8"):
        pack(torch.zeros(3, dtype=torch.uint8), bits)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a whole number from 1 to 8"):
        unpack(torch.zeros(3, dtype=torch.uint8), bits, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [-1, 1.5, True])
def test_a_count_that_is_none(count: object) -> None:
    with pytest.raises(ConfigError, match="expected the number of indices"):
        packed_size(count, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64, torch.bfloat16])
def test_indices_that_are_no_integers(dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=f"{dtype}: expected integers"):
        pack(torch.zeros(3, dtype=dtype), 2)


@pytest.mark.parametrize("wrong", [-1, 4, 256, 257])
def test_an_index_that_does_not_fit(wrong: int) -> None:
    with pytest.raises(ConfigError, match=f"index {wrong} does not fit in 2 bits: expected 0 to 3"):
        pack(torch.tensor([0, 3, wrong]), 2)
    assert pack(torch.tensor([0, 3, 3]), 2).tolist() == [0b111100]


@pytest.mark.parametrize(("size", "problem"), [(3, "cut off"), (5, "too long"), (0, "cut off")])
def test_a_stream_of_the_wrong_length(size: int, problem: str) -> None:
    with pytest.raises(DataError, match=f"{problem}: 10 indices of 3 bits take 4 bytes, it has {size}"):
        unpack(torch.zeros(size, dtype=torch.uint8), 3, 10)


@pytest.mark.parametrize("packed", [torch.zeros(4), torch.zeros(4, dtype=torch.int8), torch.zeros(2, 2).byte()])
def test_a_stream_of_the_wrong_kind(packed: Tensor) -> None:
    with pytest.raises(DataError, match="expected uint8, one dimension"):
        unpack(packed, 3, 10)


def test_bits_after_the_last_index_are_refused() -> None:
    packed = pack(torch.tensor([7, 7, 7]), 3)
    packed[-1] |= 0b10
    with pytest.raises(DataError, match="bits set after its 3 indices"):
        unpack(packed, 3, 3)


def test_codes_are_numbered_from_the_lowest_level() -> None:
    sign = build_quantizer("sign", 1)
    x = torch.tensor([[-2.0, 0.0, 3.0], [1.0, -1.0, -0.5]])
    packed = pack_codes(sign, x)
    assert packed.tolist() == [0b001110]
    assert torch.equal(unpack_codes(sign, packed, (2, 3)), sign.codes(x))


def test_an_index_that_is_no_level_is_refused() -> None:
    ternary = build_quantizer("ternary", 2)
    assert unpack_codes(ternary, pack(torch.tensor([0, 1, 2]), 2), (3,)).tolist() == [-1, 0, 1]
    with pytest.raises(DataError, match="holds the index 3, but the quantizer has 3 levels"):
        unpack_codes(ternary, pack(torch.tensor([0, 1, 3]), 2), (3,))
