"""What a model costs: bits, parameters, multiply–accumulates and bytes, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lowbit._errors import ConfigError
from lowbit.layers.activation import QuantReLU
from lowbit.layers.fake_quantize import FakeQuantize
from lowbit.layers.inspect import QUANT_LAYERS
from lowbit.layers.text import as_text
from lowbit.quantizers.scale import Scale

FLOAT_BYTES = 4
PASSING = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d)
"""Modules that, in evaluation, hand on values they were given."""


@dataclass(frozen=True)
class LayerSummary:
    """One module with parameters of its own.

    Args:
        weight_bits, activation_bits: 32 for float.
        parameters: numbers it owns (weights, bias, scales; running statistics not counted).
        macs: multiply–accumulates for one example, all its calls together.
        bytes: on disk, weights packed to their width, everything else float32.
        float_bytes: the same in float32 throughout.
    """

    name: str
    kind: str
    weight_bits: int
    activation_bits: int
    parameters: int
    macs: int
    bytes: int
    float_bytes: int


@dataclass(frozen=True)
class Summary:
    """A model's layers and their totals."""

    layers: tuple[LayerSummary, ...]

    @property
    def parameters(self) -> int:
        """Numbers the model owns."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply–accumulates for one example."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def float_bytes(self) -> int:
        """Bytes in float32."""
        return sum(layer.float_bytes for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        totals = {
            "parameters": self.parameters,
            "macs": self.macs,
            "bytes": self.bytes,
            "float_bytes": self.float_bytes,
        }
        return {**totals, "layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        return as_text(self.render())

    def render(self) -> Table:
        """The summary as a table."""
        ratio = self.float_bytes / max(1, self.bytes)
        caption = f"W, A: bits of weights and inputs. {self.bytes:,} bytes, {ratio:.1f} times less than in float32."
        table = Table(show_footer=True, box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
        table.add_column("layer", footer="total", overflow="fold")
        table.add_column("kind", overflow="fold")
        for header, total in (
            ("W", ""),
            ("A", ""),
            ("parameters", f"{self.parameters:,}"),
            ("MACs", _short(self.macs)),
            ("bytes", _short(self.bytes)),
            ("as float", _short(self.float_bytes)),
        ):
            table.add_column(header, justify="right", no_wrap=True, footer=total)
        for layer in self.layers:
            table.add_row(
                layer.name,
                layer.kind,
                str(layer.weight_bits),
                str(layer.activation_bits),
                f"{layer.parameters:,}",
                _short(layer.macs) if layer.macs else "",
                _short(layer.bytes),
                _short(layer.float_bytes),
            )
        return table


def _short(count: int) -> str:
    """Three significant digits: 41.2 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def summary(model: nn.Module, input_shape: tuple[int, ...] | None = None, show: bool = True) -> Summary:
    """Bits, parameters, multiply–accumulates and bytes of every layer; prints them as a table.

    MACs are counted in one forward pass over zeros of shape (1, *input_shape), in evaluation mode; the model is left as
    it was. Without an input shape they are left out. That pass also follows the values of a quantized ReLU through
    pooling, flattening and the like to the layer that reads them, whose input bits are then those of the ReLU.

    Args:
        model: float or converted.
        input_shape: shape of one example, for example (3, 32, 32).
        show: print the table.

    Raises: ConfigError when the model does not take that shape.
    """
    run = _Run() if input_shape is None else _run_once(model, input_shape)
    rows = []
    inside = {id(m) for q in model.modules() if isinstance(q, FakeQuantize) for m in q.modules()}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if id(module) not in inside:
            row = _row(name, module, run, seen)
            if row is not None:
                rows.append(row)
    result = Summary(tuple(rows))
    if show:
        Console().print(result.render())
    return result


@dataclass(frozen=True)
class _Run:
    """What one forward pass tells, by the id of a module."""

    macs: dict[int, int] = field(default_factory=dict)
    """Multiply–accumulates of one example."""
    bits: dict[int, int] = field(default_factory=dict)
    """Bits of an input that was low-bit already when it came."""


def _run_once(model: nn.Module, input_shape: tuple[int, ...]) -> _Run:
    """One example through the model."""
    if not isinstance(input_shape, Sequence) or not all(isinstance(n, int) and n > 0 for n in input_shape):
        raise ConfigError(f"input_shape={input_shape!r}: expected the shape of one example, such as (3, 32, 32)")
    run = _Run()
    first = next(model.parameters(), torch.zeros(()))
    with _counting(model, run), torch.no_grad():
        try:
            model(torch.zeros(1, *input_shape, device=first.device, dtype=first.dtype))
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:  # torch's modules raise each
            raise ConfigError(f"the model does not take an input of shape {(1, *input_shape)}: {error}") from None
    return run


def _row(name: str, module: nn.Module, run: _Run, seen: set[int]) -> LayerSummary | None:
    """The row of a module, or None if it owns nothing; tied tensors count once."""
    own = [
        t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None and t.is_floating_point()
    ]
    own = [t for t in own if id(t) not in seen]
    macs = run.macs.get(id(module), 0)
    if not own and not macs and not isinstance(module, QuantReLU):
        return None
    seen.update(id(t) for t in own)
    size = sum(t.numel() for t in own) * FLOAT_BYTES
    packed, scales, weight_bits, input_bits = size, 0, 32, run.bits.get(id(module), 32)
    if isinstance(module, QUANT_LAYERS):
        weight, inputs = module.weight_quantizer, module.input_quantizer
        scales = _scale_count(weight, module.weight) + _scale_count(inputs, None)
        if isinstance(weight, FakeQuantize):
            weight_bits = weight.quantizer.grid.bits
            if any(t is module.weight for t in own):
                packed += math.ceil(module.weight.numel() * weight_bits / 8) - module.weight.numel() * FLOAT_BYTES
        if isinstance(inputs, FakeQuantize):
            input_bits = inputs.quantizer.grid.bits
        packed += scales * FLOAT_BYTES
    elif isinstance(module, QuantReLU):
        scales, input_bits = _scale_count(module.input_quantizer, None), module.input_quantizer.quantizer.grid.bits
        packed += scales * FLOAT_BYTES
    parameters = sum(p.numel() for p in own if isinstance(p, nn.Parameter)) + scales
    return LayerSummary(
        name or "(model)", type(module).__name__, weight_bits, input_bits, parameters, macs, packed, size
    )


def _scale_count(quantize: nn.Module, tensor: Tensor | None) -> int:
    """How many scales deployment has to store; those computed from the data at run time are none."""
    if not isinstance(quantize, FakeQuantize):
        return 0
    learned = sum(s.value.numel() for s in quantize.modules() if isinstance(s, Scale) and s.value is not None)
    fixed = any(isinstance(part, Scale) and part.policy in ("none", "fixed") for part in quantize.modules())
    # A learned scale is not computed even once: that would initialise it, and a summary changes nothing.
    if learned or fixed or tensor is None:
        return learned
    with torch.no_grad():
        return quantize.quantizer.scale(quantize.quantizer.granularity.blocks(tensor)).numel()


def _passed_on(input: Tensor) -> Tensor:
    return input.view_as(input)  # another object: low-bit values are told from what they came from by identity


@contextmanager
def _counting(model: nn.Module, run: _Run) -> Iterator[None]:
    """Count multiply–accumulates of convolutions and linear layers while the model runs in evaluation mode.

    Quantizers pass their input on meanwhile: learned scales would take their first value from the zeros otherwise.
    """

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Tensor = module.weight  # type: ignore[assignment]
        # A transposed convolution spreads every input over weight[0]; the others gather weight[0] for every output.
        spread = isinstance(module, nn.modules.conv._ConvTransposeNd)
        work = (inputs[0] if spread else output).numel() * weight[0].numel()
        run.macs[id(module)] = run.macs.get(id(module), 0) + work
        if id(inputs[0]) in low_bit:
            run.bits[id(module)] = low_bit[id(inputs[0])][0]

    low_bit: dict[int, tuple[int, Tensor]] = {}  # tensors of few values, by id; kept, so that no id is used again

    def follow(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, QuantReLU):
            low_bit[id(output)] = module.input_quantizer.quantizer.grid.bits, output
        elif id(inputs[0]) in low_bit:
            low_bit[id(output)] = low_bit[id(inputs[0])][0], output

    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    hooks += [m.register_forward_hook(follow) for m in model.modules() if isinstance(m, (QuantReLU, *PASSING))]
    modes = [(m, m.training) for m in model.modules()]
    quantizers = [m for m in model.modules() if isinstance(m, FakeQuantize)]
    try:
        model.eval()
        for quantizer in quantizers:
            vars(quantizer)["forward"] = _passed_on
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for quantizer in quantizers:
            vars(quantizer).pop("forward", None)
        for hook in hooks:
            hook.remove()
