"""Activations to whole numbers, as nodes: `n(x)` of docs/semantics.md in the numbers of each form."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit.deploy.onnx.graph import QONNX, UINT8, Writer
from lowbit.deploy.onnx.parts import Steps
from lowbit.quantizers import Grid


def float_codes(writer: Writer, steps: Steps, x: str, name: str) -> str:
    """n as float32."""
    if steps.kind == "done":
        return x
    if steps.kind == "sign":
        return _sign(writer, x, name, writer.scalar(1), writer.scalar(-1))
    z = _steps(writer, steps, x, name)
    if steps.kind == "ceil":
        return writer.node("Ceil", [z], f"{name}.codes", x)
    return writer.node("Round", [_saturate(writer, steps, z, name, x)], f"{name}.codes", x)


def fits_byte(grid: Grid) -> bool:
    """Whether the whole numbers of a grid, and the 0 of a padding, have room in a byte with a zero point."""
    return max(grid.high, 0) - min(grid.low, 0) <= 255


def zero_point(grid: Grid) -> int:
    """What is added to n to make a byte of it."""
    return max(-grid.low, 0)


def byte_codes(writer: Writer, steps: Steps, x: str, name: str) -> str:
    """n + zero point as uint8, which is what integer kernels take; for signs 0 and 2, so that the real 0 is 1."""
    zero, high = zero_point(steps.grid), steps.grid.high + zero_point(steps.grid)
    if steps.kind == "sign":
        return _sign(writer, x, name, writer.scalar(2, np.uint8), writer.scalar(0, np.uint8), UINT8)
    if steps.kind != "round":
        whole = float_codes(writer, steps, x, f"{name}.float")
        if zero:
            whole = writer.node("Add", [whole, writer.scalar(zero)], f"{name}.shifted", x)
        return writer.node("Cast", [whole], f"{name}.codes", x, UINT8, to=UINT8)
    z = _steps(writer, steps, x, name)
    ends = [] if (zero, high) == (-steps.grid.low, 255) else [0, high]
    # Rounded half to even and saturated to 0 … 255, then to the grid: the same as saturated first.
    inputs = [z, writer.scalar(1), writer.scalar(zero, np.uint8)]
    codes = writer.node("QuantizeLinear", inputs, f"{name}.unclipped" if ends else f"{name}.codes", x, UINT8)
    bounds = [writer.scalar(end, np.uint8) for end in ends]
    return writer.node("Clip", [codes, *bounds], f"{name}.codes", x, UINT8) if ends else codes


def as_float(writer: Writer, steps: Steps, codes: str, like: str, name: str) -> str:
    """n as float32, from `byte_codes`."""
    zero = zero_point(steps.grid)
    result = writer.to_float(codes, f"{name}.shifted_codes" if zero else f"{name}.float_codes", like)
    return writer.node("Add", [result, writer.scalar(-zero)], f"{name}.float_codes", like) if zero else result


def qonnx_codes(writer: Writer, steps: Steps, x: str, name: str) -> str:
    """n as float32, by Quant or BipolarQuant with scale 1."""
    if steps.kind in ("done", "sign"):
        return qonnx_round(writer, steps.grid, x, f"{name}.codes")
    z = _steps(writer, steps, x, name)
    # Quant saturates at powers of two: a grid that ends elsewhere is saturated before.
    z = z if _ends(steps.grid) or steps.kind == "ceil" else _saturate(writer, steps, z, name, x)
    return qonnx_round(writer, steps.grid, z, f"{name}.codes", "CEIL" if steps.kind == "ceil" else "ROUND")


def qonnx_round(writer: Writer, grid: Grid, x: str, name: str, rounding: str = "ROUND") -> str:
    """Real numbers to whole numbers of a grid, float32. Where the grid's are odd, the node's are all between its ends.

    Args:
        writer: for the nodes.
        grid: the whole numbers.
        x: the real numbers; whole numbers of the grid stay what they are.
        name: of the result.
        rounding: ROUND (half to even) or CEIL.
    """
    if grid.binary:
        return writer.node("BipolarQuant", [x, writer.scalar(1)], name, x, domain=QONNX)
    signed, narrow, bits = _format(grid)
    inputs = [x, writer.scalar(1), writer.scalar(0), writer.scalar(bits)]
    attributes: dict[str, Any] = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": rounding}
    return writer.node("Quant", inputs, name, x, domain=QONNX, **attributes)


def _format(grid: Grid) -> tuple[bool, bool, int]:
    signed = grid.low < 0
    narrow = signed and grid.low == -grid.high
    return signed, narrow, (grid.high if narrow else max(grid.high, -1 - grid.low)).bit_length() + signed


def _ends(grid: Grid) -> bool:
    """Whether Quant saturates where the grid ends."""
    signed, narrow, bits = _format(grid)
    low = narrow - 2 ** (bits - 1) if signed else 0
    return (grid.low, grid.high) == (low, 2 ** (bits - signed) - 1)


def _steps(writer: Writer, steps: Steps, x: str, name: str) -> str:
    """z; saturated and less the slack where it is rounded up."""
    z = writer.node("Mul", [x, writer.constant(steps.reciprocal.numpy(), f"{name}.reciprocal")], f"{name}.z", x)
    if steps.kind != "ceil":
        return z
    return writer.node("Mul", [_saturate(writer, steps, z, name, x), writer.scalar(steps.slack)], f"{name}.slack", x)


def _saturate(writer: Writer, steps: Steps, z: str, name: str, like: str) -> str:
    ends = [writer.scalar(steps.grid.low), writer.scalar(steps.grid.high)]
    return writer.node("Clip", [z, *ends], f"{name}.saturated", like)


def _sign(writer: Writer, x: str, name: str, plus: str, minus: str, dtype: int = 1) -> str:
    choice = writer.node("GreaterOrEqual", [x, writer.scalar(0)], f"{name}.positive", x, 9)
    return writer.node("Where", [choice, plus, minus], f"{name}.codes", x, dtype)
