"""What of a traced network torch computes, and what the kernels, for inputs of given shapes."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from lowbit.deploy.kernels.loader import kernels
from lowbit.deploy.kernels.lowering import Lowering
from lowbit.deploy.kernels.segment import Lowered, Segment
from lowbit.deploy.kernels.tracing import Kind, Shapes, kind_of, only_says_sizes, writes_in_place

_log = logging.getLogger("lowbit")

Item: TypeAlias = fx.Node | Lowered


@dataclass
class Plan:
    """How inputs of one shape are computed: torch's operations one by one, and stretches of the kernels'.

    Args:
        items: both, in order.
        shapes: what every node gives.
        whole: the items as one function of inputs of the planned shapes, dtypes and devices.
        direct: whether that is programs and nothing else.
        used: when it was last used, in calls.
    """

    items: list[Item]
    shapes: dict[fx.Node, Tensor]
    whole: Callable[..., Any]
    direct: bool
    used: int = 0


def make_plan(traced: fx.GraphModule, args: Sequence[Tensor], threads: int, isa: str) -> Plan:
    """Divide a traced network between torch and the kernels, for inputs of these shapes."""
    module = kernels()
    assert module is not None
    interpreter = Shapes(traced)
    interpreter.run(*args)
    shapes, modules = interpreter.found, dict(traced.named_modules())
    on_cpu = all(a.device.type == "cpu" for a in args)
    items: list[Item | Segment] = []
    current: list[fx.Node] = []
    kinds: dict[fx.Node, Kind] = {}

    def close() -> None:
        items.extend(_segments(current, kinds, shapes))
        current.clear()

    reached: set[fx.Node] = set()  # what depends on the current stretch
    for node in traced.graph.nodes:
        kind = kind_of(node, modules, shapes) if on_cpu else None
        if kind == "mean" and not _computed(node.args[0], kinds, current):
            kind = None
        apart = bool(current) and kind is not None and _differ(shapes[current[0]], shapes[node], kind)
        if kind is not None and not apart:
            kinds[node] = kind
            current.append(node)
            reached.add(node)
            continue
        changes = writes_in_place(node, modules)
        if kind is not None or reached & set(node.all_input_nodes) or node.op == "output" or changes:
            close()
            reached.clear()
        if kind is not None:
            kinds[node] = kind
            current.append(node)
            reached.add(node)
        else:
            items.append(node)
    lowered: list[Item] = []
    for item in items:
        if not isinstance(item, Segment):
            lowered.append(item)
            continue
        try:
            lowered.append(Lowering(module, item, modules, shapes, threads, isa).build())
        except (ValueError, RuntimeError, MemoryError) as error:  # more than the kernels can do
            _log.info("lowbit.compile: %d operations stay on PyTorch: %s", len(item.nodes), error)
            lowered.extend(item.nodes)
    lowered = _needed(lowered)
    direct = _direct(lowered)
    return Plan(lowered, shapes, direct or _whole(traced, lowered), direct is not None)


def _differ(first: Tensor, other: Tensor, kind: Kind) -> bool:
    """Whether a value cannot be in the program of a first: rows and maps, or different numbers of examples.

    Rows are computed side by side, maps one after the other: several rows stay apart from the maps they come from.
    """
    if first.shape[0] != other.shape[0]:
        return True
    if first.ndim == other.ndim or other.shape[0] == 1:
        return False
    return first.ndim == 2 or kind not in ("mean", "flatten")


def _computed(node: Any, kinds: Mapping[fx.Node, Kind], current: Sequence[fx.Node]) -> bool:
    """Whether the kernels compute a value: torch's may lie in another order in memory, which its sums then follow."""
    return node in current and (kinds[node] != "same" or _computed(node.args[0], kinds, current))


def _segments(
    nodes: Sequence[fx.Node], kinds: Mapping[fx.Node, Kind], shapes: Mapping[fx.Node, Tensor]
) -> list[fx.Node | Segment]:
    """One segment, if it holds a layer; else the nodes themselves."""
    if not any(kinds[n] == "layer" for n in nodes):
        return list(nodes)
    inside = set(nodes)
    segment = Segment(list(nodes), {n: kinds[n] for n in nodes})
    for node in nodes:
        sources = [s for s in node.all_input_nodes if s in shapes]  # and not numbers
        segment.inputs += [s for s in sources if s not in inside and s not in segment.inputs]
        if any(user not in inside for user in node.users):
            segment.outputs.append(node)
    return [segment]


def _needed(items: Sequence[Item]) -> list[Item]:
    """The items but for sizes that no torch operation asks for any more."""
    kept: list[Item] = []
    read: set[fx.Node] = set()
    for item in reversed(items):
        if isinstance(item, Lowered):
            read.update(item.segment.inputs)
        elif item in read or not only_says_sizes(item):
            read.update(item.all_input_nodes)
        else:
            continue
        kept.append(item)
    return kept[::-1]


def _direct(items: Sequence[Item]) -> Callable[..., Tensor] | None:
    """The items as one function, if they are programs and nothing else."""
    stretches = [item for item in items if isinstance(item, Lowered)]
    nodes = [item for item in items if isinstance(item, fx.Node)]
    inputs, others = [n for n in nodes if n.op == "placeholder"], [n for n in nodes if n.op != "placeholder"]
    if not stretches or [n.op for n in others] != ["output"]:
        return None
    result = others[0].args[0]
    read = {node for item in stretches for node in item.segment.inputs}
    if not set(inputs) <= read or not isinstance(result, fx.Node) or result in inputs:
        return None
    calls = [(item.direct(), item.segment.inputs, item.segment.outputs) for item in stretches]
    first, reads, writes = calls[0]
    if len(calls) == 1 and inputs == reads and writes == [result]:
        return lambda *args: first(*args)[0]

    def whole(*args: Tensor) -> Tensor:
        env = dict(zip(inputs, args, strict=True))
        for call, reads, writes in calls:
            env.update(zip(writes, call(*[env[n] for n in reads]), strict=True))
        return env[result]

    return whole


class _Stretch(nn.Module):
    """A segment, as a module that a graph can call."""

    def __init__(self, lowered: Lowered) -> None:
        super().__init__()
        self.lowered = lowered

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.lowered.run(*inputs)


def _whole(traced: fx.GraphModule, items: Sequence[Item]) -> fx.GraphModule:
    """The items as one graph, whose code runs without an interpreter's overhead."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    stretches: dict[str, nn.Module] = {}
    for item in items:
        if isinstance(item, fx.Node):
            env[item] = graph.node_copy(item, lambda n: env[n])
            continue
        name = f"_stretch_{len(stretches)}"
        stretches[name] = _Stretch(item)
        result = graph.call_module(name, tuple(env[n] for n in item.segment.inputs))
        for i, node in enumerate(item.segment.outputs):
            env[node] = graph.call_function(operator.getitem, (result, i))
    modules = dict(traced.named_modules())
    held = {str(n.target): modules[str(n.target)] for n in items if isinstance(n, fx.Node) and n.op == "call_module"}
    for item in items:
        if isinstance(item, fx.Node) and item.op == "get_attr":
            found: Any = traced
            for part in str(item.target).split("."):
                found = getattr(found, part)
            held[str(item.target)] = found
    return fx.GraphModule({**held, **stretches}, graph)
