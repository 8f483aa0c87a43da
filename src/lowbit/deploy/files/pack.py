"""Dense packing of level indices: k bits each, with no gap between them.

Bit order: little-endian throughout. Index i takes the bits i·k to i·k + k − 1 of the stream, its lowest bit first;
bit b of the stream is bit b mod 8 of byte ⌊b / 8⌋, counted from the lowest. In other words, the stream is the integer
`Σ_i index_i · 2^(i·k)` written with its lowest byte first. The bits after the last index are 0.

Example: the 3-bit indices 1, 2, 7 make the integer 1 + 2·8 + 7·64 = 465, hence the bytes 209, 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowbit._errors import ConfigError, DataError
from lowbit.quantizers import AbstractQuantizer

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` indices of `bits` bits take: ⌈count·bits / 8⌉. Raises: ConfigError."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ConfigError(f"bits={bits!r}: expected a whole number from 1 to 8")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ConfigError(f"count={count!r}: expected the number of indices, 0 or more")
    return -(-count * bits // 8)


def pack(indices: Tensor, bits: int) -> Tensor:
    """Level indices as a dense stream of bits; the order is described at the top of this module.

    Beyond the result it needs an eighth of the indices at a time (and a uint8 copy, if they are not uint8 already).

    Args:
        indices: whole numbers 0 … 2^bits − 1, any integer dtype, any shape; taken in row-major order.
        bits: 1 to 8.

    Returns:
        uint8, shape (⌈numel·bits / 8⌉,), on the same device.

    Raises:
        ConfigError: bits out of range, indices that are not integers, or an index out of range.
    """
    stream = torch.zeros(packed_size(indices.numel(), bits), dtype=torch.uint8, device=indices.device)
    if indices.dtype not in _INTEGERS:
        raise ConfigError(f"indices of dtype {indices.dtype}: expected integers, for example uint8")
    if not indices.numel():
        return stream
    low, high = (int(end) for end in torch.aminmax(indices))
    if low < 0 or high >= 2**bits:
        wrong = low if low < 0 else high
        raise ConfigError(f"index {wrong} does not fit in {bits} bits: expected 0 to {2**bits - 1}")
    flat = indices.reshape(-1).to(torch.uint8)
    # Eight indices fill `bits` whole bytes. All indices at one place of their eight land in the same byte of those.
    for place in range(min(8, flat.numel())):
        part = flat[place::8]
        byte, shift = divmod(place * bits, 8)
        stream[byte::bits][: len(part)] |= part << shift
        if shift + bits > 8:
            stream[byte + 1 :: bits][: len(part)] |= part >> (8 - shift)
    return stream


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The level indices of a stream that `pack` made: `unpack(pack(x, bits), bits, x.numel()) == x.reshape(-1)`.

    Args:
        packed: uint8, shape (⌈count·bits / 8⌉,).
        bits: 1 to 8.
        count: how many indices the stream holds.

    Returns:
        uint8, shape (count,), on the same device.

    Raises:
        ConfigError: bits or count out of range.
        DataError: a stream of another dtype or length, or with bits set after the last index.
    """
    size = packed_size(count, bits)
    if packed.dtype != torch.uint8 or packed.ndim != 1:
        raise DataError(
            f"the stream has dtype {packed.dtype}, shape {tuple(packed.shape)}: expected uint8, one dimension"
        )
    if len(packed) != size:
        problem = "cut off" if len(packed) < size else "too long"
        raise DataError(
            f"the stream is {problem}: {count} indices of {bits} bits take {size} bytes, it has {len(packed)}"
        )
    used = count * bits % 8
    if used and int(packed[-1]) >> used:
        raise DataError(f"the stream has bits set after its {count} indices of {bits} bits: it was packed otherwise")
    result = torch.empty(count, dtype=torch.uint8, device=packed.device)
    mask = 2**bits - 1
    for place in range(min(8, count)):
        part = result[place::8]
        byte, shift = divmod(place * bits, 8)
        value = packed[byte::bits][: len(part)] >> shift
        if shift + bits > 8:
            value |= packed[byte + 1 :: bits][: len(part)] << (8 - shift)
        part.copy_(value.bitwise_and_(mask))
    return result


def pack_codes(quantizer: AbstractQuantizer, x: Tensor) -> Tensor:
    """The codes of x, packed: index = (code − low) / step of the quantizer's grid, `grid.bits` bits each.

    Returns:
        uint8, shape (⌈numel·bits / 8⌉,).

    Raises: ConfigError when the grid has more than 256 levels.
    """
    grid = quantizer.grid
    return pack((quantizer.codes(x) - grid.low) // grid.step, grid.bits)


def unpack_codes(quantizer: AbstractQuantizer, packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The codes that `pack_codes` packed: code = low + step·index.

    Args:
        quantizer: one with the same grid.
        packed: uint8, shape (⌈numel·bits / 8⌉,).
        shape: shape of the tensor that was packed.

    Returns:
        int16, of that shape.

    Raises: DataError for a stream that does not fit, or an index that is no level.
    """
    grid = quantizer.grid
    indices = unpack(packed, grid.bits, math.prod(shape)).reshape(shape)
    if grid.count < 2**grid.bits and indices.numel() and int(indices.max()) >= grid.count:
        raise DataError(
            f"the stream holds the index {int(indices.max())}, but the quantizer has {grid.count} levels: "
            "it was packed for another quantizer, or is damaged"
        )
    return indices.to(torch.int16).mul_(grid.step).add_(grid.low)
