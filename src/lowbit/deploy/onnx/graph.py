"""Writing nodes into an ONNX graph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array: TypeAlias = NDArray[Any]
QONNX = "qonnx.custom_op.general"
FLOAT = TensorProto.FLOAT
UINT8 = TensorProto.UINT8
# Types narrower than a byte: smallest and largest number, bits, and the opset from which they exist.
NARROW = ((TensorProto.INT2, -2, 1, 2, 25), (TensorProto.INT4, -8, 7, 4, 21))


class Writer:
    """Nodes and constants to be put where a placeholder of the graph stands.

    Args:
        shapes: of the graph's tensors, by name; `node` adds those of the tensors that it makes.
        taken: names of the graph; `node` and `constant` add theirs.
        opset: of the default domain.
    """

    def __init__(self, shapes: dict[str, onnx.TypeProto], taken: set[str], opset: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shapes, self.taken, self.opset = shapes, taken, opset
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def fresh(self, wish: str) -> str:
        """A name that nothing has yet."""
        name, number = wish, 1
        while name in self.taken:
            number += 1
            name = f"{wish}_{number}"
        self.taken.add(name)
        return name

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        name: str,
        like: str | None = None,
        dtype: int = FLOAT,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node; the name of its one result, which is its own.

        Args:
            kind: of operation.
            inputs: names of tensors.
            name: wish for a name.
            like: a tensor that has the shape of the result; None where that is not known.
            dtype: of the result.
            domain: of the operation.
            attributes: of the node.
        """
        name = self.fresh(name)
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, domain=domain, **attributes))
        if like is not None and like in self.shapes:
            self.shapes[name] = onnx.TypeProto()
            self.shapes[name].CopyFrom(self.shapes[like])
            self.shapes[name].tensor_type.elem_type = dtype
        return name

    def constant(self, value: Array, name: str) -> str:
        """An initializer; the same numbers, asked for again under whatever name, are stored once."""
        value = np.ascontiguousarray(value).reshape(value.shape)
        return self._once(str(value.dtype), value, name, lambda: numpy_helper.from_array(value))

    def _once(self, kind: str, value: Array, name: str, make: Callable[[], onnx.TensorProto]) -> str:
        key = kind, value.shape, hashlib.sha256(value.tobytes()).digest()
        if key not in self._known:
            tensor = make()
            tensor.name = self._known[key] = self.fresh(name)
            self.constants.append(tensor)
        return self._known[key]

    def scalar(self, value: float, dtype: Any = np.float32) -> str:
        """A constant of shape (), named after its value."""
        return self.constant(np.array(value, dtype), f"{np.dtype(dtype).name}_{value:.9g}")

    def whole(self, value: Array, name: str, narrow: bool) -> str:
        """Whole numbers as an initializer: int8, or with `narrow` the narrowest type of the opset that holds them."""
        for kind, low, high, bits, since in NARROW if narrow and value.size else ():
            if self.opset >= since and low <= value.min() and value.max() <= high:
                make = partial(helper.make_tensor, name, kind, value.shape, packed(value, bits), raw=True)
                return self._once(str(kind), value, name, make)
        return self.constant(value.astype(np.int8), name)

    def to_float(self, x: str, name: str, like: str | None = None) -> str:
        """Whole numbers as float32."""
        return self.node("Cast", [x], name, like, to=FLOAT)


def packed(value: Array, bits: int) -> bytes:
    """Two's complement of `bits` bits (2 or 4), row by row, the first number in the lowest bits of a byte."""
    each = 8 // bits
    fields = np.zeros(-(-value.size // each) * each, np.uint8)
    fields[: value.size] = value.reshape(-1).astype(np.int8).view(np.uint8) & (2**bits - 1)
    shifted = fields.reshape(-1, each) << (np.arange(each, dtype=np.uint8) * bits)
    return np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8).tobytes()
