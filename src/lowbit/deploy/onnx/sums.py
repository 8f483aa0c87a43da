"""Sums over whole numbers, as nodes: exact, by an integer kernel or by a float one that cannot round.

A float32 kernel is exact while every partial sum stays below 2²⁴: whatever its order, each is a whole number that
float32 holds. Where the weights could bring a sum past that, they are written as `2^t·h + l` and summed in two parts:
each part is exact, and their sum is rounded once, to what a conversion of the exact sum to float32 would give.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto
from torch import Tensor

from lowbit._errors import ExportError
from lowbit.deploy.onnx.codes import fits_byte, zero_point
from lowbit.deploy.onnx.graph import Writer
from lowbit.deploy.onnx.parts import IntegerLayer, RealLayer
from lowbit.quantizers import Grid

FLOAT_LIMIT = 2**24
PAIR = 2**15 - 1  # where processors without VNNI saturate the sum of two products of a uint8 and an int8
_OPERATIONS = {"linear": "MatMul", "convolution": "Conv", "transposed": "ConvTranspose"}


def integer_obstacle(part: IntegerLayer) -> str:
    """Why no integer kernel takes the layer, or an empty string."""
    if part.geometry.kind == "transposed":
        return "there is no integer kernel for transposed convolutions"
    if not fits_byte(part.steps.grid):
        return "its input takes more than a byte"
    return "its sums take more than 32 bits" if part.reach >= 2**31 else ""


def integer_sums(writer: Writer, part: IntegerLayer, codes: str, call: str, like: str) -> tuple[str, str]:
    """By ConvInteger or MatMulInteger: uint8 times int8, in int32, as float32; and how, in words."""
    parts, shift, top = [part.whole], 0, zero_point(part.steps.grid) + part.steps.grid.high
    if part.whole.abs().max() > 128 or part.whole.max() > 127:
        shift, parts = 4, _halves(part.whole, 4)
    # Weights as uint8 around 128 where products with int8 could saturate.
    middle = 128 if 2 * top * max(int(p.abs().max()) for p in parts) > PAIR else 0
    sums = []
    for which, whole in zip(("", "_low"), parts, strict=False):
        stored = part.geometry.stored(whole + middle).contiguous().numpy()
        weight = writer.constant(stored.astype(np.uint8 if middle else np.int8), f"{part.name}.weight{which}")
        inputs = [codes, weight, writer.scalar(zero_point(part.steps.grid), np.uint8)]
        inputs += [writer.scalar(middle, np.uint8)] if middle else []
        sums.append(_integer_map(writer, part, inputs, call, like))
    if shift:
        high = writer.node("Mul", [sums[0], writer.scalar(2**shift, np.int32)], f"{call}.high", like, TensorProto.INT32)
        sums = [writer.node("Add", [high, sums[1]], f"{call}.both", like, TensorProto.INT32)]
    how = "integer kernel" + (", in two parts" if shift else "") + (", weights as uint8" if middle else "")
    return writer.to_float(sums[0], f"{call}.float_sums", like), how


def _integer_map(writer: Writer, part: IntegerLayer, inputs: list[str], call: str, like: str) -> str:
    geometry = part.geometry
    if geometry.kind == "linear":
        return writer.node("MatMulInteger", inputs, f"{call}.sums", like, TensorProto.INT32)
    inputs[0] = _padded(writer, part, inputs[0], call)
    return writer.node("ConvInteger", inputs, f"{call}.sums", like, TensorProto.INT32, **geometry.attributes)


def float_sums(
    writer: Writer,
    part: IntegerLayer,
    constant: Callable[[Writer, Tensor, Grid | None, str], str],
    codes: str,
    call: str,
    like: str,
) -> tuple[str, str]:
    """By a float kernel, on whole numbers; and how, in words.

    Args:
        writer: for the nodes.
        part: the layer.
        constant: the weight as the form writes it, float32.
        codes: float32.
        call: the name of this call.
        like: the layer's output in the trace.

    Raises: ExportError where two parts are not enough.
    """
    stored, shift = part.geometry.stored, _shift(part)
    if shift is None:
        raise ExportError(
            f"layer '{part.name}': its sums reach {part.reach}, past 2^24, where float32 rounds, and no integer kernel "
            "takes it in this form; give it fewer bits"
        )
    if not shift:
        weight = constant(writer, stored(part.whole), part.grid, f"{part.name}.weight")
        return _bounded(writer, part, codes, weight, f"{call}.sums", like), "float kernel on whole numbers"
    sums = []
    for which, half in zip(("high", "low"), _halves(part.whole, shift), strict=True):
        weight = constant(writer, stored(half), None, f"{part.name}.weight_{which}")
        sums.append(_bounded(writer, part, codes, weight, f"{call}.{which}", like))
    high = writer.node("Mul", [sums[0], writer.scalar(2.0**shift)], f"{call}.shifted", like)
    return writer.node("Add", [high, sums[1]], f"{call}.sums", like), "float kernel on whole numbers, in two parts"


def is_exact(part: IntegerLayer) -> bool:
    """Whether a float kernel gives the sums without rounding, in one part or in two."""
    return _shift(part) is not None


def _shift(part: IntegerLayer) -> int | None:
    """By how many bits to split the weights: 0 where one part will do, None where two will not."""
    if part.reach < FLOAT_LIMIT:
        return 0
    for shift in (4, 5, 3, 6, 2, 1):
        largest = max(part.geometry.reach(half) for half in _halves(part.whole, shift))
        if largest * part.steps.largest < FLOAT_LIMIT:
            return shift
    return None


def _halves(whole: Tensor, shift: int) -> list[Tensor]:
    """h and l with `whole = 2^shift·h + l`."""
    low = whole % 2**shift
    return [(whole - low) / 2**shift, low]


def _bounded(writer: Writer, part: IntegerLayer, codes: str, weight: str, name: str, like: str) -> str:
    """The sums, between bounds that none of them passes.

    The Clip changes nothing. But ONNX Runtime multiplies a factor that follows a Conv or a MatMul into the weights or
    into the inner loop, where it rounds; past a Clip it does not look.
    """
    sums = float_map(writer, part, codes, weight, f"{name}.float", like)
    return writer.node("Clip", [sums, writer.scalar(-part.reach), writer.scalar(part.reach)], name, like)


def float_map(writer: Writer, part: IntegerLayer | RealLayer, x: str, weight: str, name: str, like: str) -> str:
    """The layer's map of float32 tensors, without bias."""
    x = _padded(writer, part, x, name)
    return writer.node(_OPERATIONS[part.geometry.kind], [x, weight], name, like, **part.geometry.attributes)


def _padded(writer: Writer, part: IntegerLayer | RealLayer, x: str, name: str) -> str:
    """x, padded where the convolution cannot do so itself."""
    geometry = part.geometry
    if not geometry.pad:
        return x
    pads = writer.constant(np.array(geometry.around, np.int64), f"{part.name}.pads")
    return writer.node("Pad", [x, pads], f"{name}.padded", mode=geometry.pad)
