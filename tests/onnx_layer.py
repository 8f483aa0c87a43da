"""One low-bit layer as an ONNX model, in the form that `lowbit export` writes, and a session that runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.generic]
SINGLE = np.float32


@dataclass
class Net:
    """One layer, as `lowbit export` writes it."""

    weight: Array  # (M, C/g, …), or (K, M) of a linear layer
    product: float | list[float] = 0.01
    bias: list[float] | None = None
    normal: tuple[list[float], list[float]] | None = None  # α, β
    relu: bool = False
    reciprocal: float = 1.0
    zero: int = 0
    clip: tuple[int, int] | None = (0, 15)
    end: str = "round"
    x_zero: int = 0
    x_clip: tuple[int, int] | None = (0, 15)
    weight_zero: Array | None = None
    shape: tuple[int | str, ...] = ("batch", 3, 8, 8)
    attributes: dict[str, int | list[int]] = field(default_factory=dict)
    pool: str = ""  # "before" or "after" the normalisation
    flat: bool = False  # reshaped before the quantizer

    @property
    def linear(self) -> bool:
        return len(self.weight.shape) == 2

    def model(self) -> onnx.ModelProto:
        chain = Chain()
        x = "x" if self.x_clip is None else chain.add("Clip", ["x", u8(self.x_clip[0]), u8(self.x_clip[1])], "codes")
        more = [] if self.weight_zero is None else [self.weight_zero]
        kind = "MatMulInteger" if self.linear else "ConvInteger"
        chain.add(kind, [x, self.weight, u8(self.x_zero), *more], "sums", **self.attributes)
        chain.add("Cast", ["sums"], "real", to=TensorProto.FLOAT)
        y = chain.add("Mul", ["real", self._channels(self.product)], "product")
        if self.bias is not None:
            y = chain.add("Add", [y, self._channels(self.bias)], "biased")
        if self.pool == "before":
            y = chain.add("MaxPool", [y], "pooled", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        if self.normal is not None:
            y = chain.add("Mul", [y, self._channels(self.normal[0])], "times")
            y = chain.add("Add", [y, self._channels(self.normal[1])], "normal")
        if self.relu:
            y = chain.add("Relu", [y], "relu")
        if self.pool == "after":
            y = chain.add("MaxPool", [y], "pooled", kernel_shape=[2, 2], strides=[2, 2])
        if self.flat:
            y = chain.add("Flatten", [y], "flat")
        self._codes(chain, y)
        return model_of(chain.nodes, chain.tensors, self.shape, 2 if self.flat else len(self.shape))

    def _codes(self, chain: Chain, y: str) -> None:
        if self.end == "sign":
            chain.add("GreaterOrEqual", [y, single(0)], "plus")
            chain.add("Where", ["plus", u8(2), u8(0)], "y")
            return
        chain.add("Mul", [y, single(self.reciprocal)], "scaled")
        if self.end == "ceil":
            chain.add("Clip", ["scaled", single(0), single(7)], "inside")
            chain.add("Mul", ["inside", single(1 - 2**-22)], "slack")
            chain.add("Ceil", ["slack"], "whole")
            chain.add("Cast", ["whole"], "y", to=TensorProto.UINT8)
            return
        unclipped = chain.add(
            "QuantizeLinear", ["scaled", single(1), u8(self.zero)], "y" if self.clip is None else "unclipped"
        )
        if self.clip is not None:
            chain.add("Clip", [unclipped, u8(self.clip[0]), u8(self.clip[1])], "y")

    def _channels(self, value: float | list[float]) -> Array:
        across = (-1,) if self.linear else (-1,) + (1,) * (self.weight.ndim - 2)
        return single(value) if isinstance(value, float) else np.array(value, SINGLE).reshape(across)


def u8(value: int) -> Array:
    return np.array(value, np.uint8)


def single(value: float) -> Array:
    return np.array(value, SINGLE)


class Chain:
    """Nodes with constants given in place."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}
        self.nodes: list[onnx.NodeProto] = []

    def add(self, kind: str, inputs: list[str | Array], output: str, **attributes: object) -> str:
        names = [value if isinstance(value, str) else f"{output}_{place}" for place, value in enumerate(inputs)]
        self.tensors |= {n: v for n, v in zip(names, inputs, strict=True) if not isinstance(v, str)}
        self.nodes.append(helper.make_node(kind, names, [output], f"{output}_node", **attributes))
        return output


def model_of(
    nodes: list[onnx.NodeProto], tensors: dict[str, Array], shape: tuple[int | str, ...], rank: int = 4
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [None] * rank)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, x: Array, optimised: Path | None = None, plain: bool = False) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]
