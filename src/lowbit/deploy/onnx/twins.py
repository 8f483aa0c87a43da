"""Twins: in a copy of a model, each low-bit part becomes one placeholder, which the export replaces by its nodes.

So torch's exporter translates the rest of the model and nothing of docs/semantics.md, and one trace serves every form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from lowbit._errors import ExportError
from lowbit.deploy.onnx.parts import Affine, IntegerLayer, RealLayer, Rectifier, Steps
from lowbit.layers import (
    ExactBatchNorm1d,
    ExactBatchNorm2d,
    ExactBatchNorm3d,
    FakeQuantize,
    QuantReLU,
    is_integer,
    plain_name,
    quant_layers,
    quantizers_of,
)

DOMAIN = "lowbit.export"  # of placeholders, none of which survives
NORMS = (ExactBatchNorm1d, ExactBatchNorm2d, ExactBatchNorm3d)
Part: TypeAlias = IntegerLayer | RealLayer | Rectifier | Affine


class Calls:
    """Names of calls: the second call of layer `a` is `a#2`. `start` before each pass of the model."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def start(self) -> None:
        """A new pass."""
        self._seen.clear()

    def name(self, layer: str) -> str:
        """The name of this call of the layer."""
        self._seen[layer] += 1
        return layer if self._seen[layer] == 1 else f"{layer}#{self._seen[layer]}"


@torch.no_grad()
def install(model: nn.Module) -> tuple[Calls, list[Part]]:
    """Replace what the low-bit parts of a model compute by placeholders, in place.

    Returns:
        calls: to be started before each pass.
        parts: what the placeholders stand for, by their attribute `part`.

    Raises: ExportError where a quantizer has no scale yet, or one that depends on the batch.
    """
    calls, parts = Calls(), list[Part]()
    for quantizer in quantizers_of(model):
        quantizer._looked = True  # what passes through here says nothing about the user's data
    modules = list(model.named_modules())
    inner = {id(m) for _, layer in quant_layers(model) for m in layer.modules() if m is not layer}
    inner |= {id(module.input_quantizer) for _, module in modules if isinstance(module, QuantReLU)}
    layers = {id(layer) for _, layer in quant_layers(model)}
    for name, module in modules:
        name = plain_name(name)
        if id(module) in layers:
            parts.append(IntegerLayer.of(module, name) if is_integer(module) else RealLayer.of(module, name))
            module.__dict__["forward"] = _layer(module, parts[-1], len(parts) - 1, calls)
        elif isinstance(module, QuantReLU) or (isinstance(module, FakeQuantize) and id(module) not in inner):
            # A quantizer of the user's, outside of any layer, is exact too, but `observe` does not know it.
            quantizer = module.input_quantizer if isinstance(module, QuantReLU) else module
            parts.append(Rectifier(name, Steps.of(quantizer, name)))
            module.__dict__["forward"] = _rectifier(
                quantizer, parts[-1], len(parts) - 1, calls, module is not quantizer
            )
        elif isinstance(module, NORMS) and module.running_mean is not None:
            parts.append(Affine.of(module, name))
            module.__dict__["forward"] = _norm(module, len(parts) - 1)
    return calls, parts


def _placeholder(x: Tensor, shape: Any, part: int, call: str, extra: tuple[int, ...] = ()) -> Tensor:
    attributes: dict[str, Any] = {"part": part, "call": call, "rank": x.ndim}
    attributes |= {"output_padding": list(extra)} if extra else {}
    return symbolic(f"{DOMAIN}::Part", (x,), attributes, dtype=torch.float32, shape=shape, version=1)


def _whole(quantizer: FakeQuantize, kind: str, x: Tensor) -> Tensor:
    """x; whole numbers where only torch can say how they come about: a quantizer of a form that we do not know."""
    if kind != "done":
        return x
    scheme = quantizer.quantizer
    return scheme.integers(scheme.discretize(scheme.normalize(x, scheme.scale(x))))


def _layer(layer: Any, part: Any, index: int, calls: Calls) -> Callable[..., Tensor]:
    def forward(input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if part.geometry.kind != "linear" and input.ndim != layer.weight.ndim:
            raise ExportError(
                f"layer '{part.name}' gets an input of {input.ndim} dimensions, without a batch: files are for batches"
            )
        extra: tuple[int, ...] = ()
        if part.geometry.kind == "transposed":
            sizes = layer.stride, layer.padding, layer.kernel_size
            extra = tuple(layer._output_padding(input, output_size, *sizes, 2, layer.dilation))
        x = input if part.steps is None else _whole(layer.input_quantizer, part.steps.kind, input)
        return _placeholder(x, part.geometry.shape(layer, x, extra), index, calls.name(part.name), extra)

    return forward


def _rectifier(quantizer: FakeQuantize, part: Any, index: int, calls: Calls, seen: bool) -> Callable[..., Tensor]:
    def forward(input: Tensor) -> Tensor:
        x = _whole(quantizer, part.steps.kind, input)
        return _placeholder(x, x.shape, index, calls.name(part.name) if seen else "")

    return forward


def _norm(norm: Any, index: int) -> Callable[..., Tensor]:
    def forward(input: Tensor) -> Tensor:
        norm._check_input_dim(input)
        return _placeholder(input, input.shape, index, "")

    return forward
