"""What a low-bit layer computes: in training a product of discrete values, in evaluation one of whole numbers.

A product of float32 values depends, in its last bits, on the order of the sum; near a tie the next quantizer then
emits another code. Whole numbers have no such doubt. docs/semantics.md says what follows for every runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lowbit.layers.fake_quantize import FakeQuantize
from lowbit.layers.fused import feed
from lowbit.quantizers import PerGroup, PerTensor

Operation: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
LARGEST_FLOAT32 = 2**24  # up to here every whole number is a float32
LARGEST_FAST = 2**13  # up to here a fast convolution algorithm (Winograd's), which is not exact, errs by less than 1/2


def product(layer: Any, input: Tensor, operation: Operation, fan_in: int, channels: int) -> Tensor:
    """`operation(Qa(x), Qw(weight), bias)`, a map that is linear in either argument.

    In evaluation, where both quantizers allow it (see `is_integer`): `y = N·m + bias` with the whole numbers
    `N = operation(n_x, n_w)`, computed without rounding, and `m = unit_x·unit_w`; two roundings in float32.

    Args:
        layer: a low-bit layer.
        input: x.
        operation: a convolution or linear map, of input, weight and bias.
        fan_in: how many products one output sums up, at most.
        channels: the dimension of the output that holds the channels, from the end: −1 for a linear layer.
    """
    if layer.training or not is_integer(layer):
        weight = layer.weight_quantizer(layer.weight)
        return feed(layer.input_quantizer(input), lambda x: operation(x, weight, layer.bias))
    result = _whole(layer, input, operation, fan_in, channels)
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (input, *layer.parameters()))):
        return result
    weight = layer.weight_quantizer(layer.weight)
    smooth = feed(layer.input_quantizer(input), lambda x: operation(x, weight, layer.bias))
    instead: Tensor = _Instead.apply(result.to(smooth.dtype), smooth)  # type: ignore[no-untyped-call]
    return instead


def is_integer(layer: Any) -> bool:
    """Whether a layer's output is, in evaluation, a multiple of one real number per channel, plus the bias.

    So it is when weight and input are quantized, the input with one scale for all, the weight with one per tensor or
    output channel.
    """
    weight, input = layer.weight_quantizer, layer.input_quantizer
    if not (isinstance(weight, FakeQuantize) and isinstance(input, FakeQuantize)):
        return False
    grouped = isinstance(weight.quantizer.granularity, PerGroup)
    return not grouped and input.quantizer.granularity == PerTensor()


def largest_sum(layer: Any, fan_in: int) -> int:
    """A bound for |N|."""
    sides = (layer.weight_quantizer, layer.input_quantizer)
    grids = [side.quantizer.integer_grid for side in sides]
    weight, input = (max(abs(grid.low), abs(grid.high)) for grid in grids)
    return fan_in * weight * input


@torch.no_grad()
def _whole(layer: Any, input: Tensor, operation: Operation, fan_in: int, channels: int) -> Tensor:
    n_x, unit_x = layer.input_quantizer.integers(input)
    n_w, unit_w = layer.weight_quantizer.integers(layer.weight)
    device, dtype = input.device.type, n_x.dtype
    # oneDNN's direct convolutions add whole numbers exactly; other backends may choose a fast algorithm.
    direct = device == "cpu" and torch._C._has_mkldnn and torch.backends.mkldnn.enabled
    limit = LARGEST_FLOAT32 if direct else LARGEST_FAST
    wide = torch.float64 if largest_sum(layer, fan_in) > limit else dtype
    final = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
    with torch.autocast(device, enabled=False):
        sums = operation(n_x.to(wide), n_w.to(wide), None)
        if not direct:
            sums = sums.round()
        multiplier = (unit_x * unit_w).to(dtype)
        after = -1 - channels
        if multiplier.ndim:
            multiplier = multiplier.reshape(-1, *[1] * after)
        result = sums.to(dtype) * multiplier
        if layer.bias is not None:
            result = result + layer.bias.to(dtype).reshape(-1, *[1] * after)
        return result.to(final)


class _Instead(torch.autograd.Function):
    """The first argument, with the gradient of the second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(shown: Tensor, smooth: Tensor) -> Tensor:
        return shown.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad
