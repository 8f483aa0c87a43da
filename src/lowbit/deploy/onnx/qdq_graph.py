"""Finding the chains that `lowbit.deploy.onnx.qdq` replaces, in an ONNX graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lowbit.deploy.onnx.qdq_search import COMPARISONS, OPERATIONS, Chain, Int, Single, Step, Switch

Constant = NDArray[np.generic]

# What gives out the codes that it was given, or some of them.
_SAME_CODES = frozenset(
    ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity", "Expand", "Gather")
)
# What may stand between the sums and their codes, and do its work on the codes instead: the largest of some values has
# the largest code, as long as codes rise with values from there on.
_MOVED = frozenset(("MaxPool", "Reshape", "Flatten"))
_CONSTANT_FIRST = {"Mul": "Mul", "Add": "Add", "Sub": "SubFrom", "Max": "Max", "Min": "Min"}
_ROUNDED = frozenset(("Ceil", "Floor", "Round"))


class Unfit(Exception):
    """Why a layer stays as it is."""


@dataclass(frozen=True)
class Layer:
    """One layer, ready to be solved.

    nodes: its chain, the integer layer first. weight: w less its zero point, int64, (channels, sum length). shape: that
    of the weight (convolution), or of the output with −1 for an unknown size (linear). zero_point: of the input codes.
    codes: the smallest and the largest input code. output: the name of the uint8 result. cast: whether the codes
    come from Cast, which does not saturate. moved: nodes of the chain that are to work on the codes, in order.
    """

    nodes: tuple[onnx.NodeProto, ...]
    weight: Int
    shape: tuple[int, ...]
    convolution: bool
    zero_point: int
    codes: tuple[int, int]
    chain: Chain
    output: str
    cast: bool
    moved: tuple[onnx.NodeProto, ...] = ()


class Graph:
    """The main graph of a model, with what is asked of it: constants, producers, consumers, types. It is edited."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        inputs = {value.name for value in graph.input}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._tensors[node.output[0]] = node.attribute[0].t
        self.producer = {name: node for node in graph.node for name in node.output}
        self._uses: dict[str, list[onnx.NodeProto | None]] = defaultdict(list)  # None: used outside, or in a subgraph
        for node in graph.node:
            for name in node.input:
                self._uses[name].append(node)
            for name in _names_in_subgraphs([node]):
                self._uses[name].append(None)
        for value in graph.output:
            self._uses[value.name].append(None)
        inferred = onnx.shape_inference.infer_shapes(model).graph
        known = [*inferred.value_info, *inferred.input, *inferred.output]
        self._types = {value.name: value.type.tensor_type for value in known}
        self._names = {*self.producer, *self._tensors, *inputs, *self._uses}

    def constant(self, name: str) -> Constant | None:
        """The value of a tensor that does not depend on the inputs, or None."""
        return numpy_helper.to_array(self._tensors[name]) if name in self._tensors else None

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """The one node that uses a tensor (once); None where there are several, or it is a result of the model."""
        uses = self._uses[name]
        return uses[0] if len(uses) == 1 else None

    def dtype(self, name: str) -> int:
        """The `TensorProto` type of a tensor, 0 if not known."""
        if name in self._tensors:
            return self._tensors[name].data_type
        return self._types[name].elem_type if name in self._types else 0

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Its sizes, −1 for one that is not known; None where not even their number is."""
        if name not in self._types or not self._types[name].HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in self._types[name].shape.dim)

    def fresh(self, name: str) -> str:
        """The name, or one like it that is not taken; it is taken then."""
        free, count = name, 1
        while free in self._names:
            free, count = f"{name}_{count}", count + 1
        self._names.add(free)
        return free

    def add_constant(self, name: str, value: Constant) -> str:
        """A new initializer; its name."""
        free = self.fresh(name)
        self.model.graph.initializer.append(numpy_helper.from_array(value, free))
        return free

    def replace(self, old: Iterable[onnx.NodeProto], new: list[onnx.NodeProto]) -> None:
        """New nodes in the place of the last of the old ones (so that the order stays topological)."""
        nodes, gone = self.model.graph.node, {name for node in old for name in node.output}
        kept = [node for node in nodes if node.output[0] not in gone]
        place = max(i for i, node in enumerate(nodes) if node.output[0] in gone) + 1
        before = sum(node.output[0] not in gone for node in nodes[:place])
        ordered = [*kept[:before], *new, *kept[before:]]
        fresh = onnx.GraphProto()
        fresh.node.extend(ordered)
        del nodes[:]
        nodes.extend(fresh.node)

    def remove_unused(self) -> None:
        """Without the constants and the shapes that nothing refers to any more."""
        graph = self.model.graph
        used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        used |= _names_in_subgraphs(graph.node)
        made = used | {name for node in graph.node for name in node.output}
        tensors = [t for t in graph.initializer if t.name in used]
        values = [value for value in graph.value_info if value.name in made]
        nodes = [node for node in graph.node if node.op_type != "Constant" or node.output[0] in used]
        fresh = onnx.GraphProto(initializer=tensors, value_info=values, node=nodes)
        for field in ("initializer", "value_info", "node"):
            graph.ClearField(field)
        graph.initializer.extend(fresh.initializer)
        graph.value_info.extend(fresh.value_info)
        graph.node.extend(fresh.node)


def match(graph: Graph, node: onnx.NodeProto) -> Layer:
    """The layer that starts with a ConvInteger or MatMulInteger. Raises: Unfit."""
    convolution = node.op_type == "ConvInteger"
    weight, shape = _weight(graph, node)
    channels = len(weight)
    if convolution:
        chain = _Reader(graph, channels, len(shape), 1)
    else:
        sizes = graph.shape(node.input[0])
        if sizes is None or len(sizes) < 2 or (len(sizes) > 2 and sum(size < 1 for size in sizes[:-1]) > 1):
            raise Unfit("the shape of its input is not known")
        shape = (*sizes[:-1], channels)
        chain = _Reader(graph, channels, len(shape), len(shape) - 1)
    chain.read(node)
    return Layer(
        nodes=tuple(chain.nodes),
        weight=weight,
        shape=shape,
        convolution=convolution,
        zero_point=_input_zero_point(graph, node),
        codes=_code_range(graph, node.input[0]),
        chain=Chain(channels, tuple(chain.steps), chain.zero_point, *chain.codes, chain.switch),
        output=chain.nodes[-1].output[0],
        cast=chain.cast,
        moved=tuple(chain.moved),
    )


class _Reader:
    """Walks a chain from the integer layer to its codes. Constants may differ along one axis of the output only."""

    def __init__(self, graph: Graph, channels: int, rank: int, axis: int) -> None:
        self.graph, self.channels, self.rank, self.axis = graph, channels, rank, axis
        self.nodes: list[onnx.NodeProto] = []
        self.steps: list[Step] = []
        self.zero_point, self.codes, self.cast = 0, (0, 255), False
        self.switch: Switch | None = None
        self.moved: list[onnx.NodeProto] = []
        self.pooled = -1  # how many steps come before the first MaxPool; −1 without one

    def read(self, node: onnx.NodeProto) -> None:
        """Fills in all of it. Raises: Unfit."""
        self.nodes = [node]
        cast = self._next()
        if cast.op_type != "Cast" or _attribute(cast, "to") != TensorProto.FLOAT:
            raise Unfit("its sums are not cast to float32")
        node = self._next()
        while not self._end(node):
            self._step(node)
            node = self._next()
        if self.pooled >= 0 and not self._rises():
            raise Unfit("its codes fall with the values that a MaxPool gives")
        self._clip()

    def _next(self) -> onnx.NodeProto:
        node = self.graph.only_consumer(self.nodes[-1].output[0])
        if node is None:
            raise Unfit(f"the result of its {self.nodes[-1].op_type} is needed elsewhere too")
        self.nodes.append(node)
        return node

    def _end(self, node: onnx.NodeProto) -> bool:
        """Whether this node makes codes of the values."""
        if node.op_type == "QuantizeLinear":
            self._quantize(node)
        elif node.op_type in COMPARISONS:
            self._signs(node)
        elif node.op_type == "Cast":
            self._cast(node)
        else:
            return False
        return True

    def _quantize(self, node: onnx.NodeProto) -> None:
        scale = self.graph.constant(node.input[1])
        zero = self.graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.array(0, np.uint8)
        if self.graph.dtype(node.output[0]) not in (TensorProto.UINT8, 0) or zero is None or zero.dtype != np.uint8:
            raise Unfit("its codes are not uint8")
        if scale is None or scale.size != 1 or zero.size != 1 or scale.dtype != np.float32 or scale.item() != 1:
            raise Unfit("its QuantizeLinear has a scale other than 1")
        self.zero_point = int(zero.item())

    def _signs(self, node: onnx.NodeProto) -> None:
        if node.input[0] != self.nodes[-2].output[0]:
            raise Unfit("it compares a constant with its values")
        threshold = self._constant(node.input[1])
        choice = self._next()
        levels = [self.graph.constant(name) for name in choice.input[1:]] if choice.op_type == "Where" else []
        above, below = levels if len(levels) == 2 and choice.input[0] == node.output[0] else (None, None)
        if above is None or below is None or any(x.dtype != np.uint8 or x.size != 1 for x in (above, below)):
            raise Unfit("its comparison does not choose between two codes")
        self.switch = Switch(node.op_type, threshold, int(above.item()), int(below.item()))
        self.codes = (min(self.switch.above, self.switch.below), max(self.switch.above, self.switch.below))

    def _cast(self, node: onnx.NodeProto) -> None:
        if _attribute(node, "to") != TensorProto.UINT8:
            raise Unfit("its values are cast to something other than codes")
        rounded = False
        for step in self.steps:
            whole = step.operation in ("Add", "Sub", "Max", "Min", "Relu") and all(
                (constant == np.rint(constant)).all() for constant in step.constants
            )
            rounded = step.operation in _ROUNDED or (rounded and whole)
        if not rounded:
            raise Unfit("its codes are cast from values that are not rounded")
        self.cast = True

    def _step(self, node: onnx.NodeProto) -> None:
        value = self.nodes[-2].output[0]
        if node.op_type in _MOVED:
            self._move(node, value)
        elif node.op_type == "Clip":
            bounds = zip(("Max", "Min"), [*node.input[1:], "", ""], strict=False)
            self.steps += [Step(operation, (self._constant(name),)) for operation, name in bounds if name]
        elif node.op_type not in OPERATIONS or len(node.input) > 2:
            raise Unfit(f"its values go through {node.op_type}")
        elif len(node.input) == 1:
            self.steps.append(Step(node.op_type))
        elif node.input[0] == value:
            self.steps.append(Step(node.op_type, (self._constant(node.input[1]),)))
        elif node.op_type in _CONSTANT_FIRST:
            self.steps.append(Step(_CONSTANT_FIRST[node.op_type], (self._constant(node.input[0]),)))
        else:
            raise Unfit(f"its values are the second operand of {node.op_type}")

    def _move(self, node: onnx.NodeProto, value: str) -> None:
        if node.input[0] != value or len(node.output) != 1:
            raise Unfit(f"its values go through {node.op_type} in another way than alone")
        self.moved.append(node)
        if node.op_type == "MaxPool" and self.pooled < 0:
            self.pooled = len(self.steps)

    def _rises(self) -> bool:
        """Whether codes rise with the values that the first MaxPool gives."""
        for step in self.steps[self.pooled :]:
            if step.operation in ("SubFrom", "Neg") or (
                step.operation in ("Mul", "Div") and (step.constants[0] < 0).any()
            ):
                return False
        if self.switch is None:
            return True
        return self.switch.comparison.startswith("Greater") == (self.switch.above >= self.switch.below)

    def _clip(self) -> None:
        """A Clip of the codes, if there is one: it joins the chain."""
        node = self.graph.only_consumer(self.nodes[-1].output[0])
        bounds = node and node.op_type == "Clip" and _bounds(self.graph, node)
        if node is not None and bounds:
            first, last = (min(max(code, bounds[0]), bounds[1]) for code in self.codes)
            self.codes = (first, last)
            self.nodes.append(node)

    def _constant(self, name: str) -> Single:
        value = self.graph.constant(name)
        if value is None:
            raise Unfit("its values meet a tensor that is not a constant")
        if value.dtype != np.float32 or not np.isfinite(value).all():
            raise Unfit("one of its constants is not a finite float32")
        reshaped = any(node.op_type != "MaxPool" for node in self.moved)
        full = (1,) * (self.rank - value.ndim) + value.shape
        if reshaped and value.ndim == 0:
            full = (1,) * self.rank
        elif reshaped:
            raise Unfit("one of its constants has a shape, after its values were given another")
        if len(full) != self.rank or value.size not in (1, self.channels) or value.size != full[self.axis]:
            raise Unfit("one of its constants varies along more than the channels")
        return value.reshape(-1, 1).astype(np.float32)


def _weight(graph: Graph, node: onnx.NodeProto) -> tuple[Int, tuple[int, ...]]:
    """The whole numbers of the weight, (channels, sum length), and its shape in the file."""
    values = graph.constant(node.input[1])
    zero = graph.constant(node.input[3]) if len(node.input) > 3 and node.input[3] else np.array(0, np.int8)
    if values is None or zero is None:
        raise Unfit("its weight is not a constant")
    if graph.dtype(node.input[0]) != TensorProto.UINT8:
        raise Unfit("its input is not uint8")
    if node.op_type == "ConvInteger":
        rows = values.astype(np.int64).reshape(len(values), -1)
    elif values.ndim == 2:
        rows = values.astype(np.int64).T
    else:
        raise Unfit("its weight is not a matrix")
    return rows - zero.astype(np.int64).reshape(-1, 1), values.shape


def _input_zero_point(graph: Graph, node: onnx.NodeProto) -> int:
    zero = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.array(0, np.uint8)
    if zero is None or zero.size != 1:
        raise Unfit("the zero point of its input is not a constant number")
    return int(zero.item())


def _code_range(graph: Graph, name: str) -> tuple[int, int]:
    """The smallest and the largest number that a uint8 tensor can hold."""
    node = graph.producer.get(name)
    if node is None or node.domain not in ("", "ai.onnx"):
        return 0, 255
    if node.op_type in _SAME_CODES or (node.op_type == "Pad" and _mode(node) != b"constant"):
        return _code_range(graph, node.input[0])
    if node.op_type == "Concat":
        ends = [_code_range(graph, part) for part in node.input]
        return min(end[0] for end in ends), max(end[1] for end in ends)
    if node.op_type == "Where":
        levels = [graph.constant(part) for part in node.input[1:]]
        if all(level is not None and level.size == 1 for level in levels):
            codes = [int(level.item()) for level in levels if level is not None]
            return min(codes), max(codes)
    if node.op_type == "Clip":
        return _bounds(graph, node) or (0, 255)
    return 0, 255


def _bounds(graph: Graph, node: onnx.NodeProto) -> tuple[int, int] | None:
    """The ends of a Clip of uint8 with constant ends, otherwise None."""
    ends = [0, 255]
    for place, name in enumerate(node.input[1:]):
        value = graph.constant(name) if name else np.array(ends[place], np.uint8)
        if value is None or value.dtype != np.uint8 or value.size != 1:
            return None
        ends[place] = int(value.item())
    return (ends[0], ends[1]) if ends[0] <= ends[1] else None


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(helper.get_attribute_value(a)) for a in node.attribute if a.name == name), 0)


def _mode(node: onnx.NodeProto) -> bytes:
    return next((a.s for a in node.attribute if a.name == "mode"), b"constant")


def _names_in_subgraphs(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Every tensor that the bodies of If, Loop and Scan may use."""
    names = set()
    for node in nodes:
        for attribute in node.attribute:
            for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                names |= {name for inner in graph.node for name in inner.input} | {out.name for out in graph.output}
                names |= _names_in_subgraphs(graph.node)
    return names
