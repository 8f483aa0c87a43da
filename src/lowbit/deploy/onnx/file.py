"""From a converted model to an ONNX model: a trace with placeholders, once, and the file of a form made from it."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowbit._errors import ExportError
from lowbit.deploy.files.container import library
from lowbit.deploy.onnx.dialects import Dialect, Written
from lowbit.deploy.onnx.graph import Writer
from lowbit.deploy.onnx.parts import Affine, IntegerLayer, RealLayer
from lowbit.deploy.onnx.twins import DOMAIN, Calls, Part, install

VERSION = 1  # of the metadata
NEWEST_IR = 13  # what ONNX Runtime and qonnx read


@dataclass(frozen=True)
class Traced:
    """A model as torch's exporter sees it.

    Args:
        model: the graph, with placeholders.
        parts: what they stand for.
        opset: of the default domain.
    """

    model: onnx.ModelProto
    parts: list[Part]
    opset: int


class _Whole(nn.Module):
    """The model, with its calls counted from 1 in every pass that the exporter makes."""

    def __init__(self, model: nn.Module, calls: Calls) -> None:
        super().__init__()
        self.model, self.calls = model, calls

    def forward(self, *inputs: Tensor) -> Any:
        self.calls.start()
        return self.model(*inputs)


def trace(model: nn.Module, example: Sequence[Tensor], opset: int) -> Traced:
    """The graph of a model; the first dimension of every input, the batch, is free in it.

    Args:
        model: a converted model; it is not changed.
        example: its inputs.
        opset: 21 or later.

    Raises: ExportError for a model that torch cannot export, or that is not float32.
    """
    twin = _copy(model)
    _check_dtype(twin)
    # From one example, the exporter would conclude that there is only ever one.
    inputs = [t if len(t) > 1 else torch.cat([t, t]) for t in (tensor.detach().cpu() for tensor in example)]
    batch = torch.export.Dim("batch")
    with quiet(), torch.no_grad():
        outputs = len(tree_leaves(twin(*inputs)))
        calls, parts = install(twin)
        try:
            program = torch.export.export(
                _Whole(twin, calls).eval(),
                tuple(inputs),
                dynamic_shapes=(tuple({0: batch} for _ in inputs),),
                strict=False,
            )
            result = torch.onnx.export(
                program,
                (),
                input_names=_names("input", len(inputs)),
                output_names=_names("output", outputs),
                opset_version=opset,
                optimize=False,  # its rules fold normalisations into weights
                verbose=False,
            )
            assert result is not None
            graph = result.model_proto
        except ExportError:
            raise
        except Exception as error:  # the exporter lets through whatever it comes across
            raise ExportError(f"torch cannot export this model for a free batch size: {_words(error)}") from error
    _tidy(graph)
    _separate(graph.graph, _names("output", outputs))
    return Traced(graph, parts, opset)


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block torch's exporter says nothing: its warnings are about itself, not about the user's model."""
    names = ("torch.onnx", "torch.export", "torch._export", "torch.fx", "onnxscript", "onnx_ir")
    known = [name for name in logging.root.manager.loggerDict if name.startswith(tuple(f"{n}." for n in names))]
    loggers = [logging.getLogger(name) for name in (*names, *known)]
    before = [log.level for log in loggers]
    try:
        for log in loggers:
            log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loggers, before, strict=True):
            log.setLevel(level)


def _copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU in evaluation mode, without gradients."""
    inner = getattr(model, "_orig_mod", model)  # what torch.compile has wrapped cannot be traced again
    computed = [t for m in inner.modules() for t in vars(m).values() if isinstance(t, Tensor)]
    result: nn.Module = copy.deepcopy(inner, {id(t): t.detach().clone() for t in computed if not t.is_leaf})
    return result.cpu().eval().requires_grad_(False)


def _check_dtype(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ExportError(f"'{name}' is {str(tensor.dtype)[6:]}: files hold float32 models; export model.float()")


def _names(stem: str, count: int) -> list[str]:
    return [stem] if count == 1 else [f"{stem}_{index}" for index in range(count)]


def _words(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return next((line.strip() for line in text.splitlines() if line.strip()), text)[:300]


def _tidy(model: onnx.ModelProto) -> None:
    """What the exporter wrote about itself and about the user's files goes; the free dimension gets its name."""
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.ClearField("doc_string")
    first = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if first and dim.dim_param == first:
                dim.dim_param = "batch"
    for initializer in graph.initializer:
        if initializer.name.startswith("model."):
            _rename(graph, initializer.name, initializer.name.removeprefix("model."))
    model.producer_name = graph.name = "lowbit"
    model.producer_version = library()


def _separate(graph: onnx.GraphProto, names: list[str]) -> None:
    """Give every result a name of its own: a tensor that the model returns twice has the name of the last time."""
    for value, name in zip(graph.output, names, strict=True):
        if value.name != name:
            graph.node.append(helper.make_node("Identity", [value.name], [name], name=name))
            value.name = name


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    if any(new == i.name for i in graph.initializer):
        return
    for item in (*graph.initializer, *graph.value_info):
        item.name = new if item.name == old else item.name
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def write(traced: Traced, dialect: Dialect) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The file of a form, and for each call of a low-bit layer how it is computed, in words.

    Raises: ExportError for a layer that the form cannot compute exactly.
    """
    if not dialect.integer:
        return _write(traced, dialect, lambda part, call: False)
    # Twice: which convolutions an integer kernel takes is known once they are there to be fused. Those that cannot be
    # fused are better off with a float kernel on the same whole numbers; a matrix product always with an integer one.
    _, fusions = _fuse(_write(traced, dialect, lambda part, call: True)[0])
    model, how = _write(traced, dialect, lambda part, call: part.geometry.kind == "linear" or call in fusions)
    model, fused = _fuse(model)
    return model, how | {call: f"fused integer kernel ({kernel})" for call, kernel in fused.items()}


def _write(
    traced: Traced, dialect: Dialect, kernel: Callable[[IntegerLayer, str], bool]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """As `write`, before any fusion; `kernel` says which layers take an integer kernel where both would do."""
    model = onnx.ModelProto()
    model.CopyFrom(traced.model)
    graph = model.graph
    shapes = {v.name: v.type for v in (*graph.value_info, *graph.input, *graph.output)}
    taken = {*shapes, *(i.name for i in graph.initializer), *(n for node in graph.node for n in node.output)}
    writer = Writer(shapes, taken, traced.opset)
    instead: dict[str, str] = {}
    marks: dict[str, tuple[str, int]] = {}
    how: dict[str, str] = {}
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
        if node.domain != DOMAIN:
            writer.nodes.append(node)
            continue
        call, written = _expand(writer, dialect, traced.parts, node, kernel)
        instead[node.output[0]] = written.result
        marks |= written.marks
        how |= {call: written.how} if written.how else {}
    nodes = _keep_outputs(graph, writer.nodes, instead, marks)
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(writer.constants)
    if dialect.qonnx:  # other runtimes find the shapes themselves; qonnx wants to be told
        known = {value.name for value in (*graph.input, *graph.output)}
        made = {name for node in nodes for name in node.output} - known
        graph.value_info.extend(helper.make_value_info(n, t) for n, t in shapes.items() if n in made)
    _prune(graph)
    _head(model, traced.opset)
    tensors = {key: {"tensor": name, "zero_point": zero} for key, (name, zero) in marks.items()}
    set_metadata(model, {"version": VERSION, "form": dialect.name, "tensors": tensors})
    return model, how


def _expand(
    writer: Writer,
    dialect: Dialect,
    parts: list[Part],
    node: onnx.NodeProto,
    kernel: Callable[[IntegerLayer, str], bool],
) -> tuple[str, Written]:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    part, call, (x,), like = parts[attributes["part"]], attributes["call"].decode(), node.input, node.output[0]
    if isinstance(part, IntegerLayer | RealLayer):
        if "output_padding" in attributes:
            geometry = part.geometry
            padding = {"output_padding": list(attributes["output_padding"])}
            part = replace(part, geometry=replace(geometry, attributes={**geometry.attributes, **padding}))
        if isinstance(part, IntegerLayer):
            return call, dialect.integer_layer(writer, part, x, call, like, kernel(part, call))
        return call, dialect.real_layer(writer, part, x, call, like)
    if isinstance(part, Affine):
        return call, dialect.affine(writer, part, x, attributes["rank"])
    return call, dialect.rectifier(writer, part, x, call)


def _keep_outputs(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], instead: dict[str, str], marks: dict[str, tuple[str, int]]
) -> list[onnx.NodeProto]:
    """Give what placeholders returned from the model the names that the model's results have."""
    results = {instead[value.name]: value.name for value in reversed(graph.output) if value.name in instead}
    for node in nodes:
        node.input[:] = [results.get(name, name) for name in node.input]
        node.output[:] = [results.get(name, name) for name in node.output]
    for key, (name, zero) in marks.items():
        marks[key] = results.get(name, name), zero
    twice = [
        (instead[v.name], v.name) for v in graph.output if v.name in instead and results[instead[v.name]] != v.name
    ]
    return [*nodes, *(helper.make_node("Identity", [results[name]], [other]) for name, other in twice)]


def _prune(graph: onnx.GraphProto) -> None:
    """Drop nodes, initializers and shapes that nothing reads."""
    needed, kept = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            continue
        kept.append(node)
        needed.update(node.input)
        needed.update(name for a in node.attribute if a.HasField("g") for n in a.g.node for name in n.input)
    made = {name for node in kept for name in node.output}
    nodes = kept[::-1]
    constants = [i for i in graph.initializer if i.name in needed]
    values = [v for v in graph.value_info if v.name in made]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    graph.value_info.extend(values)


def _head(model: onnx.ModelProto, opset: int) -> None:
    del model.opset_import[:]
    domains = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    model.opset_import.append(helper.make_opsetid("", opset))
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in sorted(domains))
    model.ir_version = min(model.ir_version, NEWEST_IR)


def _fuse(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Fused int8 kernels where they give the same codes; by call, which. Tensors that are lost leave the metadata."""
    from lowbit.deploy.onnx.qdq import fuse

    result, fusions = fuse(model)
    content = metadata(result)
    assert content is not None
    made = {name for node in result.graph.node for name in node.output}
    content["tensors"] = {key: entry for key, entry in content["tensors"].items() if entry["tensor"] in made}
    set_metadata(result, content)
    return result, {fusion.layer.removesuffix(".sums"): fusion.reason for fusion in fusions if fusion.fused}


def set_metadata(model: onnx.ModelProto, content: dict[str, Any]) -> None:
    """Write the metadata that `lowbit.deploy.onnx.runner` reads."""
    helper.set_model_props(model, {"lowbit": json.dumps(content)})


def metadata(model: onnx.ModelProto) -> dict[str, Any] | None:
    """The metadata of a model that `export` wrote; None for another."""
    for entry in model.metadata_props:
        if entry.key == "lowbit":
            content: dict[str, Any] = json.loads(entry.value)
            return content
    return None
