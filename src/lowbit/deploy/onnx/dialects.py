"""The forms of an exported file: in which numbers activations and weights are written, and what sums them up.

| form | activations | weights in the file | sums |
| --- | --- | --- | --- |
| int8 | uint8 with a zero point | int8 | fused kernels and MatMulInteger; else Conv of whole numbers |
| int4 | float32 | int4 (from opset 25 int2; int8 from 5 bits on) | Conv, MatMul of whole numbers |
| float | float32 | float32 | Conv, MatMul of whole numbers |
| qonnx | float32 behind Quant or BipolarQuant | float32 behind Quant or BipolarQuant | Conv, MatMul of whole numbers |

Where the way of a form does not exist for a layer, or could round, the layer is written another way, and the export
says which. ConvInteger is a last resort: in ONNX Runtime it takes 2 to 18 times as long as a float convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.deploy.onnx.codes import (
    as_float,
    byte_codes,
    fits_byte,
    float_codes,
    qonnx_codes,
    qonnx_round,
    zero_point,
)
from lowbit.deploy.onnx.graph import Writer
from lowbit.deploy.onnx.parts import Affine, IntegerLayer, RealLayer, Rectifier, Steps
from lowbit.deploy.onnx.sums import float_map, float_sums, integer_obstacle, integer_sums, is_exact
from lowbit.quantizers import Grid


@dataclass(frozen=True)
class Written:
    """What came of a part.

    Args:
        result: name of its result.
        marks: tensors to observe: key → name and zero point.
        how: which kernels compute it, in words; "" where there is nothing to choose.
    """

    result: str
    marks: dict[str, tuple[str, int]]
    how: str


@dataclass(frozen=True)
class Dialect:
    """How one form writes what docs/semantics.md says.

    Args:
        name: of the form.
        integer: take integer kernels where there are some.
        compact: store weights as whole numbers, not as float32.
        narrow: and in fewer than 8 bits where the file format can.
        qonnx: write Quant and BipolarQuant.
    """

    name: str
    integer: bool = False
    compact: bool = False
    narrow: bool = False
    qonnx: bool = False

    def _codes(self, writer: Writer, steps: Steps, x: str, call: str) -> str:
        return (qonnx_codes if self.qonnx else float_codes)(writer, steps, x, call)

    def _constant(self, writer: Writer, whole: Tensor, grid: Grid | None, name: str) -> str:
        """Whole-number weights as a float32 tensor; of a grid, or a part of such weights."""
        whole = whole.detach().contiguous()
        if self.qonnx and grid is not None:
            return qonnx_round(writer, grid, writer.constant(whole.numpy(), name), f"{name}.rounded")
        if not self.compact or whole.min() < -128 or whole.max() > 127:
            return writer.constant(whole.float().numpy(), name)
        # A Cast and no DequantizeLinear: ONNX Runtime fuses that with a following MatMul into one that quantizes the
        # activations to 8 bits. The Cast it computes once, on loading.
        return writer.to_float(writer.whole(whole.numpy(), name, self.narrow), f"{name}.float")

    def integer_layer(self, writer: Writer, part: IntegerLayer, x: str, call: str, like: str, kernel: bool) -> Written:
        """A layer that sums whole numbers; `kernel`: take an integer kernel although a float one would do."""
        obstacle = integer_obstacle(part)
        byte = self.integer and fits_byte(part.steps.grid)
        kernel = kernel and self.integer and not obstacle
        if not (kernel or self.qonnx or obstacle or is_exact(part)):
            byte = kernel = True
        offset = zero_point(part.steps.grid) if byte else 0
        codes = (byte_codes if byte else self._codes)(writer, part.steps, x, call)
        if kernel:
            sums, how = integer_sums(writer, part, codes, call, like)
        else:
            whole = as_float(writer, part.steps, codes, x, call) if byte else codes
            sums, how = float_sums(writer, part, self._constant, whole, call, like)
        shape = (-1, *[1] * (part.whole.ndim - 2))
        multiplier = writer.constant(part.multiplier.reshape(shape).numpy(), f"{part.name}.multiplier")
        name = f"{call}.output" if part.bias is None else f"{call}.scaled"
        result = _biased(writer, part, writer.node("Mul", [sums, multiplier], name, like), call, like)
        return Written(result, {f"{call}:codes": (codes, offset), f"{call}:output": (result, 0)}, how)

    def real_layer(self, writer: Writer, part: RealLayer, x: str, call: str, like: str) -> Written:
        """A layer that sums real numbers."""
        marks = {}
        if part.steps is not None:
            codes = self._codes(writer, part.steps, x, call)
            marks[f"{call}:codes"] = (codes, 0)
            unit = writer.constant(part.steps.unit.numpy(), f"{part.name}.unit")
            x = writer.node("Mul", [codes, unit], f"{call}.values", x)
        result = float_map(writer, part, x, self._values(writer, part), f"{call}.sums", like)
        # The Clip changes nothing; it keeps runtimes from folding a normalisation into low-bit weights.
        ends = [writer.scalar(sign * torch.finfo(torch.float32).max) for sign in (-1, 1)]
        result = writer.node("Clip", [result, *ends], f"{call}.output" if part.bias is None else f"{call}.kept", like)
        result = _biased(writer, part, result, call, like)
        return Written(result, {**marks, f"{call}:output": (result, 0)}, "float kernel, sums of real numbers")

    def _values(self, writer: Writer, part: RealLayer) -> str:
        """The weight's values, float32, to the bit."""
        name, stored = f"{part.name}.weight", part.geometry.stored
        if part.whole is None or not (self.compact or self.qonnx):
            return writer.constant(stored(part.values.detach()).contiguous().numpy(), name)
        unit = f"{part.name}.weight_unit"
        if part.axis is None:
            whole = self._constant(writer, stored(part.whole), part.grid, name)
            return writer.node(
                "Mul", [whole, writer.constant(stored(part.unit).contiguous().numpy(), unit)], f"{name}.values"
            )
        whole = self._constant(writer, part.whole, part.grid, name)
        result = writer.node("Mul", [whole, writer.constant(part.unit.numpy(), unit)], f"{name}.blocks")
        moved = part.values.movedim(part.axis, 0)
        shape = writer.constant(torch.tensor(moved.shape).numpy(), f"{name}.shape")
        result = writer.node("Reshape", [result, shape], f"{name}.reshaped")
        if part.axis == 0 and part.geometry.kind != "linear":
            return result
        order = [1, 0, *range(2, moved.ndim)]  # the axis of groups is 0 or 1; a linear layer's weight is transposed
        return writer.node("Transpose", [result], f"{name}.values", perm=order)

    def rectifier(self, writer: Writer, part: Rectifier, x: str, call: str) -> Written:
        """A quantized ReLU."""
        name = call or part.name
        codes = self._codes(writer, part.steps, x, name)
        unit = writer.constant(part.steps.unit.numpy(), f"{part.name}.unit")
        result = writer.node("Mul", [codes, unit], f"{name}.output", x)
        return Written(result, {f"{call}:codes": (codes, 0), f"{call}:output": (result, 0)} if call else {}, "")

    def affine(self, writer: Writer, part: Affine, x: str, rank: int) -> Written:
        """A batch normalisation of a tensor of `rank` dimensions."""
        shape = (-1, *[1] * (rank - 2))
        slope, offset = (
            writer.constant(value.reshape(shape).numpy(), f"{part.name}.{end}")
            for value, end in ((part.slope, "slope"), (part.offset, "offset"))
        )
        scaled = writer.node("Mul", [x, slope], f"{part.name}.scaled", x)
        return Written(writer.node("Add", [scaled, offset], f"{part.name}.output", x), {}, "")


DIALECTS = {
    ("onnx", "int8"): Dialect("int8", integer=True, compact=True),
    ("onnx", "int4"): Dialect("int4", compact=True, narrow=True),
    ("onnx", "float"): Dialect("float"),
    ("qonnx", "float"): Dialect("qonnx", qonnx=True),
}


def _biased(writer: Writer, part: IntegerLayer | RealLayer, x: str, call: str, like: str) -> str:
    if part.bias is None:
        return x
    shape = (-1, *[1] * len(part.geometry.attributes.get("kernel_shape", ())))
    bias = writer.constant(part.bias.reshape(shape).numpy(), f"{part.name}.bias")
    return writer.node("Add", [x, bias], f"{call}.output", like)
