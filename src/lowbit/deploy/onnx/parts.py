"""What an exported file has to know of each low-bit part of a model: plain numbers, taken from its modules once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit._errors import ExportError
from lowbit.deploy.onnx.geometry import Geometry
from lowbit.layers import FakeQuantize, affine
from lowbit.quantizers import Grid, PerGroup
from lowbit.quantizers.staircase import ceil_slack


@dataclass(frozen=True)
class Steps:
    """How real numbers become whole numbers n: docs/semantics.md, "Numbers".

    Args:
        kind: round, ceil or sign; "done" where the numbers are whole already (see `onnx_twins`).
        reciprocal: r.
        unit: what n is multiplied by.
        grid: of n.
        slack: what the saturated z is multiplied by before it is rounded up.
    """

    kind: str
    reciprocal: Tensor
    unit: Tensor
    grid: Grid
    slack: float

    @staticmethod
    def of(module: FakeQuantize, name: str) -> Steps:
        """Those of a quantizer of activations; the layer's name is for messages.

        Raises: ExportError when there is no scale yet, or it depends on the batch.
        """
        quantizer, scaling = module.quantizer, module.quantizer.scaling
        if not quantizer.static or isinstance(quantizer.granularity, PerGroup):
            raise ExportError(
                f"layer '{name}': the scale of its activations is computed from each batch; a file needs one scale for "
                "all: take a learned one"
            )
        if scaling.policy in ("fitted", "learned") and not (scaling._ready or bool(scaling.initialized)):
            raise ExportError(
                f"layer '{name}': the scale of its activations is not known yet: train the model, or call "
                "lowbit.calibrate(model, inputs)"
            )
        scale = quantizer.scale(torch.zeros(1, 1)).detach()
        kind: str | None = quantizer.rounding
        if kind is None:
            kind = "sign" if quantizer.integer_grid.binary and not quantizer.relative else "done"
        return Steps(
            kind, scale.reciprocal(), quantizer.unit(scale), quantizer.integer_grid, 1 - ceil_slack(scale.dtype)
        )

    @property
    def largest(self) -> int:
        """A bound for |n|."""
        return max(abs(self.grid.low), abs(self.grid.high))


@dataclass(frozen=True)
class IntegerLayer:
    """A layer that sums whole numbers: `y = N·m + bias`.

    Args:
        name: of the layer.
        steps: of its input.
        whole: n_w, shape of the weight.
        grid: of n_w.
        multiplier: m, one per output channel.
        bias: likewise, or None.
        geometry: the map.
    """

    name: str
    steps: Steps
    whole: Tensor
    grid: Grid
    multiplier: Tensor
    bias: Tensor | None
    geometry: Geometry

    @staticmethod
    def of(layer: Any, name: str) -> IntegerLayer:
        """Of a layer for which `is_integer` holds."""
        steps = Steps.of(layer.input_quantizer, name)
        whole, unit = layer.weight_quantizer.integers(layer.weight)
        # One per channel even where one would do: ONNX Runtime multiplies a single factor into a matrix product.
        multiplier = (steps.unit * unit).reshape(-1).expand(_channels(layer))
        grid = layer.weight_quantizer.quantizer.integer_grid
        return IntegerLayer(name, steps, whole, grid, multiplier, layer.bias, Geometry.of(layer))

    @property
    def reach(self) -> int:
        """A bound for |N|, and for every partial sum."""
        return int(self.geometry.reach(self.whole)) * self.steps.largest


@dataclass(frozen=True)
class RealLayer:
    """A layer that sums real numbers: its input or its weight is not quantized, or not with one unit per channel.

    Args:
        name: of the layer.
        steps: of its input; None: not quantized.
        values: the weight's values.
        whole: n_w in blocks that share a unit; None where the values are not exactly `unit·n_w`.
        unit: broadcasts over the blocks.
        grid: of n_w.
        axis: of the weight that comes first in blocks of groups; None: the blocks are the weight.
        bias: or None.
        geometry: the map.
    """

    name: str
    steps: Steps | None
    values: Tensor
    whole: Tensor | None
    unit: Tensor
    grid: Grid
    axis: int | None
    bias: Tensor | None
    geometry: Geometry

    @staticmethod
    def of(layer: Any, name: str) -> RealLayer:
        """Of any low-bit layer."""
        quantized = isinstance(layer.input_quantizer, FakeQuantize)
        steps = Steps.of(layer.input_quantizer, name) if quantized else None
        geometry, module, weight = Geometry.of(layer), layer.weight_quantizer, layer.weight
        if not isinstance(module, FakeQuantize):
            return RealLayer(name, steps, weight, None, weight, Grid(0, 0), None, layer.bias, geometry)
        quantizer, values = module.quantizer, module(weight)
        blocks = quantizer.granularity.blocks(weight)
        scale = quantizer.scale(blocks)
        whole = quantizer.integers(quantizer.discretize(quantizer.normalize(blocks, scale)))
        unit = quantizer.unit(scale)
        same = torch.equal(quantizer.granularity.restore(whole * unit, weight), values)
        axis = quantizer.granularity.axis if isinstance(quantizer.granularity, PerGroup) else None
        grid = quantizer.integer_grid
        return RealLayer(name, steps, values, whole if same else None, unit, grid, axis, layer.bias, geometry)


@dataclass(frozen=True)
class Rectifier:
    """A `QuantReLU`, or a quantizer that stands alone: x becomes unit·n."""

    name: str
    steps: Steps


@dataclass(frozen=True)
class Affine:
    """A batch normalisation: y·α, + β."""

    name: str
    slope: Tensor
    offset: Tensor

    @staticmethod
    def of(norm: Any, name: str) -> Affine:
        """Of an `ExactBatchNorm`."""
        return Affine(name, *affine(norm))


def _channels(layer: Any) -> int:
    channels: int = layer.out_features if layer.weight.ndim == 2 else layer.out_channels
    return channels
