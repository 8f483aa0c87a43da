"""Low-bit layers of an ONNX file as fused int8 kernels of ONNX Runtime, with the same codes.

A layer in the form that `lowbit export` writes is a chain, each operation of it rounded once (docs/semantics.md):

    ConvInteger | MatMulInteger → Cast(float) → Mul, Add, Relu, … with constants → QuantizeLinear(1, z) → [Clip]

or, in the place of QuantizeLinear, `GreaterOrEqual → Where` (signs) or `Ceil → Cast(uint8)` (staircases). MaxPool,
Reshape and Flatten may stand in between: they come after the kernel then, and work on codes. ONNX Runtime runs the
chain node by node; its `QLinearConv` and `QGemm` do all of it in one, but with other arithmetic:

    code = saturate(round_half_even(float(Σ (x − z_x)·w' + B_c)·μ_c) + z).

`fuse` replaces the chain where numbers w' = f_c·w, B_c and μ_c exist for which every code is the same, for every sum in
reach of the weights and the codes of the input; `lowbit.deploy.onnx.qdq_search` finds and proves them. It writes the
fused operators themselves and not DequantizeLinear → Conv → QuantizeLinear: the runtime makes the same kernels of both,
but the second would compute in floating point where it does not recognise the pattern, or with fewer optimisations.

Kernels for processors without VNNI add pairs of products in 16 bits, which saturate. The weights w' are kept small
enough for that never to happen: (x_1·w'_1 + x_2·w'_2) within int16 for all codes x.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from lowbit.deploy.onnx.qdq_graph import Graph, Layer, Unfit, match
from lowbit.deploy.onnx.qdq_search import Int, Requantisation, requantise

_INT16 = 2**15 - 1
_INT8 = 127  # and not −128: kernels for ARM add pairs of products with x − 128 in 16 bits
_CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Fusion:
    """What became of one integer layer.

    layer: the name of its node (of its output, if it has none). fused: whether it is one kernel now. reason: which
    kernel, or why not. channels: its output channels. factor: the largest |f_c| (0 if not fused, or all constant).
    """

    layer: str
    fused: bool
    reason: str
    channels: int
    factor: int


def fuse(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Fusion]]:
    """The model with fused int8 kernels wherever they give the same codes, and what became of each integer layer.

    A layer is replaced as a whole or left alone. All other nodes, inputs and outputs stay as they are.

    Args:
        model: a valid model of opset 13 or later; it is not changed.

    Returns:
        A new model, and one `Fusion` per ConvInteger or MatMulInteger of its main graph, in their order. Linear layers
        become `com.microsoft.QGemm`, which is an operator of ONNX Runtime; convolutions the standard `QLinearConv`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = Graph(result)
    fusions, layers = [], []
    for node in list(result.graph.node):
        if node.op_type not in ("ConvInteger", "MatMulInteger") or node.domain not in ("", "ai.onnx"):
            continue
        name, channels = node.name or node.output[0], 0
        try:
            layer = match(graph, node)
            channels = layer.chain.channels
            layer, found = _solve(layer)
            kernel = "QLinearConv" if layer.convolution else "QGemm"
            fusions.append(Fusion(name, True, kernel, channels, int(np.abs(found.factor).max(initial=0))))
            layers.append((layer, found))
        except Unfit as error:
            fusions.append(Fusion(name, False, str(error), channels, 0))
    # Only now: the ranges of the codes were read off the chains.
    for layer, found in layers:
        _replace(graph, layer, found)
    if layers:
        graph.remove_unused()
    return result, fusions


def _solve(layer: Layer) -> tuple[Layer, Requantisation]:
    """The numbers of the kernel, and the layer with its codes clipped to those in reach. Raises: Unfit."""
    low, high = _reach(layer)
    if max(np.abs(low).max(initial=0), np.abs(high).max(initial=0)) >= 2**31:
        raise Unfit("its sums do not fit in 32 bits")
    ends = layer.chain.values(np.stack([low, high], axis=1))
    if np.isnan(ends).any() or (layer.cast and not ((ends >= 0) & (ends <= 255)).all()):
        raise Unfit("its float operations overflow")
    # A ReLU or a saturation among the float operations bends the chain: what the kernel cannot bend, a Clip cuts off.
    codes = layer.chain.codes(np.stack([low, high], axis=1))
    layer = replace(layer, chain=replace(layer.chain, first=int(codes.min()), last=int(codes.max())))
    limit = _limit(layer)
    found = requantise(layer.chain, low, high, limit)
    if isinstance(found, Requantisation):
        return layer, found
    if limit[found] == 0:
        raise Unfit(
            f"channel {found}: weights up to {np.abs(layer.weight[found]).max()} with codes up to {layer.codes[1]} "
            "do not fit the 16-bit sums of processors without VNNI"
        )
    raise Unfit(f"channel {found} of {layer.chain.channels}: no multiplier and offset give all of its codes")


def _reach(layer: Layer) -> tuple[Int, Int]:
    """The smallest and the largest sum of each channel, over all codes of the input (and the 0 of the padding)."""
    low, high = (code - layer.zero_point for code in layer.codes)
    if layer.convolution:
        low, high = min(low, 0), max(high, 0)
    positive, negative = np.maximum(layer.weight, 0), np.minimum(layer.weight, 0)
    return (
        (positive * low + negative * high).sum(axis=1, dtype=np.int64),
        (positive * high + negative * low).sum(axis=1, dtype=np.int64),
    )


def _limit(layer: Layer) -> Int:
    """The largest factor of each channel for which f·w fits in int8 and pairs of products in int16."""
    ordered = np.sort(np.pad(layer.weight, ((0, 0), (2, 2))), axis=1)
    pair = np.maximum(ordered[:, -2:].sum(axis=1), -ordered[:, :2].sum(axis=1))
    largest = np.abs(layer.weight).max(axis=1, initial=0)
    code = max(*layer.codes, layer.zero_point, 1)
    return np.where(largest > 0, np.minimum(_INT8 // np.maximum(largest, 1), _INT16 // np.maximum(pair * code, 1)), 0)


def _replace(graph: Graph, layer: Layer, found: Requantisation) -> None:
    node, prefix = layer.nodes[0], layer.nodes[0].output[0]
    weight = (layer.weight * found.factor[:, None]).astype(np.int8)
    shaped = weight.reshape(layer.shape) if layer.convolution else np.ascontiguousarray(weight.T)

    def constant(suffix: str, value: NDArray[np.generic]) -> str:
        return graph.add_constant(f"{prefix}_{suffix}", value)

    one, zero = constant("one", np.array(1, np.float32)), constant("zero", np.array(layer.chain.zero_point, np.uint8))
    x_zero = constant("x_zero", np.array(layer.zero_point, np.uint8))
    parameters = [
        constant("weight", shaped),
        constant("multiplier", found.multiplier),
        constant("weight_zero", np.zeros(len(weight), np.int8)),
    ]
    bias = constant("bias", found.bias.astype(np.int32))
    ends = layer.chain.first, layer.chain.last
    name = node.name or prefix
    stages = 1 + (ends != (0, 255)) + len(layer.moved)
    names = [*(graph.fresh(f"{layer.output}_{stage}") for stage in range(1, stages)), layer.output]
    if layer.convolution:
        inputs = [node.input[0], one, x_zero, *parameters, one, zero, bias]
        new = [helper.make_node("QLinearConv", inputs, names[:1], name)]
        new[0].attribute.extend(node.attribute)
    else:
        new = _linear(graph, layer, [one, x_zero, *parameters, bias, one, zero], names[0], name)
    done = 1
    if ends != (0, 255):
        first, last = constant("low", np.array(ends[0], np.uint8)), constant("high", np.array(ends[1], np.uint8))
        new.append(helper.make_node("Clip", [names[0], first, last], [names[1]], f"{name}_clip"))
        done = 2
    for moved, source, target in zip(layer.moved, names[done - 1 :], names[done:], strict=False):
        copy = onnx.NodeProto()
        copy.CopyFrom(moved)
        copy.input[0], copy.output[0] = source, target
        new.append(copy)
    graph.replace(layer.nodes, new)


def _linear(graph: Graph, layer: Layer, parameters: list[str], output: str, name: str) -> list[onnx.NodeProto]:
    """QGemm, which takes matrices only: with more dimensions between two Reshapes."""
    if not any(entry.domain == _CONTRIB for entry in graph.model.opset_import):
        graph.model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    x = layer.nodes[0].input[0]
    if len(layer.shape) == 2:
        return [helper.make_node("QGemm", [x, *parameters], [output], name, domain=_CONTRIB)]
    flat, product = graph.fresh(f"{x}_flat"), graph.fresh(f"{output}_flat")
    there = graph.add_constant(f"{flat}_shape", np.array([-1, layer.weight.shape[1]], np.int64))
    back = graph.add_constant(f"{product}_shape", np.array(layer.shape, np.int64))
    return [
        helper.make_node("Reshape", [x, there], [flat], f"{name}_flatten"),
        helper.make_node("QGemm", [flat, *parameters], [product], name, domain=_CONTRIB),
        helper.make_node("Reshape", [product, back], [output], f"{name}_unflatten"),
    ]
