"""From a stretch of a traced network to one program of the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from lowbit.deploy.kernels.averaging import averaging, order_of
from lowbit.deploy.kernels.epilogue import (
    AddValue,
    Affine,
    Rectify,
    Staircase,
    Step,
    monotone,
    staircase_of,
    thresholds,
)
from lowbit.deploy.kernels.segment import Lowered, Segment
from lowbit.deploy.kernels.tracing import Kind, bytes_fit, padding_of, planes_fit, pooling, subsampling
from lowbit.layers import FakeQuantize, QuantConv2d, affine

_ROUNDINGS = {"nearest": 0, "up": 1, "sign": 2}
_EXTENDING = ("norm", "relu", "add", "same", "flatten", "pool")
FEWEST_POSITIONS = 16  # from which on bit planes are worth their vectors of 64 and more
LARGEST_BAND = 1 << 14  # channels × width up to which a band of sums fits the second-level cache


@dataclass
class _Chain:
    """A value on its way: where it comes from, and the steps since."""

    layer: fx.Node | None  # a convolution ...
    source: int  # ... of these codes, or floats that exist
    steps: list[Step]
    pool: _Pool | None = None


@dataclass(frozen=True)
class _Pool:
    """A max-pooling of a convolution's sums, in the place of one behind its steps."""

    window: tuple[int, int, int]
    inner: tuple[int, int, int]  # height, width and margin of what is pooled
    falling: Tensor  # bool, (C,): the largest result comes from the smallest sum


class Lowering:
    """Builds the program of one segment.

    Args:
        kernels: the extension module.
        segment: what to build.
        modules: the traced model's modules.
        shapes: what every node gives.
        threads: how many the program uses.
        isa: instruction set, or "" for the best.
    """

    def __init__(
        self,
        kernels: ModuleType,
        segment: Segment,
        modules: Mapping[str, nn.Module],
        shapes: Mapping[fx.Node, Tensor],
        threads: int,
        isa: str = "",
    ) -> None:
        self.segment = segment
        self.modules = modules
        self.shapes = shapes
        self.program = kernels.Program(threads, isa)
        self.rows = 0
        first = shapes[segment.nodes[0]]
        if first.ndim == 2 and first.shape[0] > 1:
            self.rows = first.shape[0]
        self.maps = self._find_maps()
        self.margins = self._find_margins()
        self.values: dict[fx.Node, int] = {}  # floats that exist
        self.chains: dict[fx.Node, _Chain] = {}  # values on their way
        self.codes: dict[fx.Node, int] = {}  # layer → codes of its input
        self.plane_values: set[int] = set()  # codes as bit planes, not bytes
        self.merged: dict[fx.Node, tuple[fx.Node, int]] = {}  # subsampling that waits for its only reader
        self.inside = set(segment.nodes)

    def build(self) -> Lowered:
        """The finished program."""
        for node in self.segment.inputs:
            self.values[node] = self.program.input(*self._form(node))
            self._quantize_from(node, _Chain(None, self.values[node], []))
        for node in self.segment.nodes:
            self._lower(node)
        for node in self.segment.outputs:
            self.program.output(self.values[node])
        self.program.finish()
        expects, shapes = (
            [self.shapes[n].shape for n in nodes] for nodes in (self.segment.inputs, self.segment.outputs)
        )
        return Lowered(self.program, self.segment, self.codes, self.rows, expects, shapes)

    def _module(self, node: fx.Node) -> Any:
        return self.modules[str(node.target)]

    def _form(self, node: fx.Node) -> tuple[int, int, int, int]:
        channels, height, width = self.maps[node]
        return channels, height, width, self.margins.get((height, width), 0)

    def _find_maps(self) -> dict[fx.Node, tuple[int, int, int]]:
        """Channels, height and width of every value. Maps that were flattened stay maps, whose layers cover them."""
        found: dict[fx.Node, tuple[int, int, int]] = {}
        for node in (*self.segment.inputs, *self.segment.nodes):
            channels, height, width = (*self.shapes[node].shape[1:], 1, 1)[:3]
            found[node] = channels, height, width
            if self.rows:
                found[node] = channels * height * width, 1, self.rows
            if self.segment.kinds.get(node) in ("flatten", "relu", "same"):
                source = node.args[0]
                assert isinstance(source, fx.Node)
                found[node] = found[source]
        return found

    def _window(self, node: fx.Node) -> tuple[Any, ...]:
        """Kernel, stride, padding, dilation and groups of a layer."""
        layer, source = self._module(node), node.args[0]
        if isinstance(layer, QuantConv2d):
            return layer.kernel_size, layer.stride, padding_of(layer), layer.dilation, layer.groups
        assert isinstance(source, fx.Node)
        kernel = (1, 1) if self.rows else self.maps[source][1:]
        return kernel, (1, 1), (0, 0), (1, 1), 1

    def _find_margins(self) -> dict[tuple[int, ...], int]:
        """How many positions lie between two rows, for each size of a map: what its layers need."""
        found: dict[tuple[int, ...], int] = {}
        for node in self.segment.nodes:
            if self.segment.kinds[node] != "layer" or self.rows:
                continue
            source = node.args[0]
            assert isinstance(source, fx.Node)
            kernel, stride, pads, dilation, _ = self._window(node)
            taps = [k * dilation[1] - pads[1] for k in range(kernel[1])]
            spread = taps[-1] // stride[1] - taps[0] // stride[1]
            before, after = self.maps[source][1:], self.maps[node][1:]
            direct = before == after and tuple(stride) == (1, 1)
            found[before] = max(found.get(before, 0), *pads)
            found[after] = max(found.get(after, 0), 0 if direct else spread)
        return found

    def _floats(self, node: fx.Node) -> int:
        return int(self.program.floats(*self._form(node)))

    def _lower(self, node: fx.Node) -> None:
        kind = self.segment.kinds[node]
        sources = [a for a in node.args if isinstance(a, fx.Node)]
        if kind == "subsample" and self._merges(node, sources[0]):
            return
        if kind == "layer":
            chain = _Chain(node, self.codes[node], self._scaling(node))
        elif kind == "norm":
            slope, offset = (t.detach() for t in affine(self._module(node)))
            chain = self._extended(sources[0], [Affine("multiply", slope), Affine("add", offset)])
        elif kind == "relu":
            chain = self._extended(sources[0], [Rectify()])
        elif kind == "add":
            chain = self._added(sources)
        elif kind in ("same", "flatten"):
            chain = self._extended(sources[0], [])
        else:
            chain = self._moved(node, sources[0], kind)
        if self._passes_on(node):
            self.chains[node] = chain
        else:
            self._emit(node, chain)

    def _passes_on(self, node: fx.Node) -> bool:
        """Whether a node's only reader is a step that can be fused to it."""
        users = list(node.users)
        only = len(users) == 1 and users[0] in self.inside and self.segment.kinds[users[0]] in _EXTENDING
        return only and users[0].args.count(node) == 1

    def _extended(self, source: fx.Node, steps: list[Step]) -> _Chain:
        chain = self.chains.pop(source, None)
        if chain is None:
            chain = _Chain(None, self.values[source], [])
        return _Chain(chain.layer, chain.source, [*chain.steps, *steps], chain.pool)

    def _added(self, sources: list[fx.Node]) -> _Chain:
        one, other = sources[0], sources[-1]
        if other in self.chains and (one not in self.chains or self._later(other, one)):
            one, other = other, one
        chain = self.chains.pop(other, None)
        if chain is not None and chain.layer is None and not chain.steps:
            self.values[other] = chain.source
        elif chain is not None:
            self.values[other] = self._floats(other)
            self._write(chain, self.values[other], {})
        return self._extended(one, [AddValue(self.values[other])])

    def _later(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether a sum is better fused to `one`: to a layer before anything else, to the later of two."""
        layers = [self.chains[n].layer is not None for n in (one, other)]
        if layers[0] != layers[1]:
            return layers[0]
        return self.segment.nodes.index(one) > self.segment.nodes.index(other)

    def _moved(self, node: fx.Node, source: fx.Node, kind: Kind) -> _Chain:
        """A pooling, a mean, or a choice of positions and channels: a value of another shape."""
        if kind == "pool" and (fused := self._pooled(node, source)) is not None:
            return fused
        source, stride = self.merged.pop(source, (source, 1))
        if source in self.chains:
            self.values[source] = self._floats(source)
            self._write(self.chains.pop(source), self.values[source], {})
        self.values[node] = self._floats(node)
        if kind == "pool":
            window = pooling(self._module(node))
            assert window is not None
            self.program.pool(self.values[source], self.values[node], *window)
        elif kind == "mean":
            height, width = self.maps[source][1:]
            average = averaging(node, self.modules, (height, width))
            assert average is not None
            self.program.mean(self.values[source], self.values[node], order_of(average, height, width))
        else:
            self.program.subsample(self.values[source], self.values[node], self._stride(node) * stride)
        return _Chain(None, self.values[node], [])

    def _stride(self, node: fx.Node) -> int:
        found = subsampling(node)
        assert found is not None
        return found[0]

    def _merges(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a choice of positions becomes one operation with the choice of channels behind it."""
        users = list(node.users)
        if len(users) != 1 or users[0] not in self.inside or self.segment.kinds[users[0]] != "subsample":
            return False
        source, stride = self.merged.pop(source, (source, 1))
        self.merged[node] = source, stride * self._stride(node)
        return True

    def _pooled(self, node: fx.Node, source: fx.Node) -> _Chain | None:
        """A pooling of what a convolution of bytes gives, as a pooling of its sums; else None."""
        chain = self.chains.get(source)
        if chain is None or chain.layer is None or chain.pool is not None or chain.source in self.plane_values:
            return None
        layer, inner = self._module(chain.layer), self.shapes[source].shape
        falling = monotone(chain.steps, inner[1])
        window = pooling(self._module(node))
        if falling is None or layer.groups != 1 or inner[1] * inner[3] > LARGEST_BAND:
            return None
        assert window is not None
        del self.chains[source]
        form = inner[2], inner[3], self.margins.get((inner[2], inner[3]), 0)
        return _Chain(chain.layer, chain.source, chain.steps, _Pool(window, form, falling))

    def _scaling(self, node: fx.Node) -> list[Step]:
        layer = self._module(node)
        staircase = staircase_of(layer.input_quantizer)
        assert staircase is not None
        _, unit = layer.weight_quantizer.integers(layer.weight.detach())
        steps: list[Step] = [Affine("multiply", (staircase.unit * unit).reshape(-1).float())]
        if layer.bias is not None:
            steps.append(Affine("add", layer.bias.detach()))
        return steps

    def _emit(self, node: fx.Node, chain: _Chain) -> None:
        """Bring the chain to an end: write what the node's readers need."""
        readers = [u for u in node.users if u in self.inside and self.segment.kinds[u] == "layer"]
        floats = node in self.segment.outputs or any(u not in readers and u in self.inside for u in node.users)
        exists = chain.layer is None and not chain.steps
        if floats and exists:
            self.values[node] = chain.source
        elif floats:
            self.values[node] = self._floats(node)
        if exists:
            self._quantize_from(node, chain)
            return
        self._write(chain, self.values[node] if floats else None, self._quantizers(node))

    def _quantizers(self, node: fx.Node) -> dict[int, Staircase]:
        """New values for the codes that the layers behind a node read."""
        made: dict[int, Staircase] = {}
        forms: dict[int, bool] = {}
        for user in node.users:
            if user not in self.inside or self.segment.kinds[user] != "layer":
                continue
            quantize = self._module(user).input_quantizer
            assert isinstance(quantize, FakeQuantize)
            staircase = staircase_of(quantize)
            assert staircase is not None
            planes = self._on_planes(user)
            same = [v for v, s in made.items() if _alike(s, staircase) and forms[v] == planes]
            value = same[0] if same else self._codes_value(node, staircase, planes)
            made[value], forms[value] = staircase, planes
            if planes:
                self.plane_values.add(value)
            self.codes[user] = value
        return made

    def _on_planes(self, node: fx.Node) -> bool:
        """Whether a layer's sums are best computed on bit planes, whose vectors are positions, rather than on bytes."""
        layer = self._module(node)
        if not bytes_fit(layer):
            return True
        staircase = staircase_of(layer.input_quantizer)
        assert staircase is not None
        product = staircase.bits * layer.weight_quantizer.quantizer.integer_grid.bits
        _, height, width = self.maps[node]
        full = height * width >= FEWEST_POSITIONS
        return planes_fit(layer) and full and product <= self.program.planes_worth

    def _codes_value(self, node: fx.Node, s: Staircase, planes: bool) -> int:
        form = self._form(node)
        how = not planes, _ROUNDINGS[s.rounding], s.reciprocal, s.least, s.most, s.keep
        return int(self.program.codes(*form, s.bits, s.low, s.step, *how))

    def _quantize_from(self, node: fx.Node, chain: _Chain) -> None:
        """Codes of a value that exists."""
        quantizers = self._quantizers(node)
        if quantizers:
            self.program.map(chain.source, [("quantize", value) for value in quantizers])

    def _write(self, chain: _Chain, store: int | None, quantizers: dict[int, Staircase]) -> None:
        if self._as_thresholds(chain, store, quantizers):
            assert chain.layer is not None
            ((value, staircase),) = quantizers.items()
            bound = self._bound(chain.layer)
            limits, falling = thresholds(chain.steps, staircase, bound)
            self.program.convolve_to_codes(
                *self._convolution(chain.layer), _array(limits), falling.to(torch.uint8).numpy(), value
            )
            return
        steps = [_spell(step) for step in chain.steps]
        steps += [("store", store)] if store is not None else []
        steps += [("quantize", value) for value in quantizers]
        if chain.pool is not None:
            assert chain.layer is not None
            flags = chain.pool.falling.to(torch.uint8).numpy()
            self.program.convolve_and_pool(
                *self._convolution(chain.layer), steps, chain.pool.window, chain.pool.inner, flags
            )
        elif chain.layer is not None:
            self.program.convolve(*self._convolution(chain.layer), steps)
        else:
            self.program.map(chain.source, steps)

    def _as_thresholds(self, chain: _Chain, store: int | None, quantizers: dict[int, Staircase]) -> bool:
        """Whether a convolution on bit planes goes straight to the next codes."""
        if chain.layer is None or chain.pool is not None or store is not None or len(quantizers) != 1:
            return False
        ((value, staircase),) = quantizers.items()
        planes = value in self.plane_values and self.codes[chain.layer] in self.plane_values
        return planes and staircase.bits <= 4 and not any(isinstance(step, AddValue) for step in chain.steps)

    def _bound(self, node: fx.Node) -> Tensor:
        """The largest |N| of each channel."""
        layer = self._module(node)
        n, _ = layer.weight_quantizer.integers(layer.weight.detach())
        grid = layer.input_quantizer.quantizer.integer_grid
        return (n.abs().flatten(1).sum(1) * max(abs(grid.low), abs(grid.high))).long()

    def _convolution(self, node: fx.Node) -> tuple[Any, ...]:
        """The arguments that a program's convolutions have in common."""
        layer = self._module(node)
        n, _ = layer.weight_quantizer.integers(layer.weight.detach())
        grid = layer.weight_quantizer.quantizer.integer_grid
        index = ((n - grid.low) / grid.step).to(torch.uint8)
        kernel, *place = self._window(node)
        weights = _array(index.reshape(index.shape[0], -1, *kernel))
        return self.codes[node], weights, *place, grid.low, grid.step, grid.bits


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(tensor.numpy())


def _spell(step: Step) -> tuple[str, Any]:
    if isinstance(step, Affine):
        return step.kind, _array(step.row.detach().reshape(-1).float())
    return ("relu", None) if isinstance(step, Rectify) else ("add_value", step.value)


def _alike(one: Staircase, other: Staircase) -> bool:
    fields = ("bits", "low", "step", "rounding", "reciprocal", "least", "most")
    return all(getattr(one, name) == getattr(other, name) for name in fields)
