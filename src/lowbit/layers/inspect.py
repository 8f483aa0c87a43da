"""Looking into a converted model: its low-bit layers, its latent weights, its scales."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lowbit.layers.conv import QuantConv1d, QuantConv2d, QuantConv3d, QuantConvTranspose2d
from lowbit.layers.fake_quantize import FakeQuantize, quantizers_of
from lowbit.layers.linear import QuantLinear
from lowbit.quantizers.scale import Scale

QuantLayer: TypeAlias = QuantConv1d | QuantConv2d | QuantConv3d | QuantConvTranspose2d | QuantLinear
QUANT_LAYERS = (QuantConv1d, QuantConv2d, QuantConv3d, QuantConvTranspose2d, QuantLinear)


def quant_layers(model: nn.Module) -> Iterator[tuple[str, QuantLayer]]:
    """Every low-bit layer with its name; a layer that is shared comes once, under its first name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QUANT_LAYERS))


def plain_name(name: str) -> str:
    """A parameter's or module's name without what torch.compile, DDP and Fabric put before it."""
    first, dot, rest = name.partition(".")
    return plain_name(rest) if dot and first in ("_forward_module", "_orig_mod", "module") else name


def latent_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The latent weights, which the forward pass reads through a quantizer: each once, with its name."""
    low_bit = [layer for _, layer in quant_layers(model) if isinstance(layer.weight_quantizer, FakeQuantize)]
    latent = {id(layer.weight) for layer in low_bit}
    return [(name, p) for name, p in model.named_parameters() if id(p) in latent]


def scale_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The learned scales (and whatever else quantizers learn), each once, with its name."""
    inside = {id(p) for module in quantizers_of(model) for p in module.parameters()}
    return [(name, p) for name, p in model.named_parameters() if id(p) in inside]


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block running statistics of normalisation layers may change; afterwards they are what they were."""
    normalising = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    buffers = [
        b for module in model.modules() if isinstance(module, normalising) for b in module.buffers(recurse=False)
    ]
    before = [b.clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


@torch.no_grad()
def calibrate(model: nn.Module, *inputs: Tensor) -> None:
    """Give every learned scale its first value, or a new one: one forward pass over `inputs`, without gradients.

    Scales would otherwise take it from the first training batch. Call this before compiling or wrapping the model.
    Batch normalisation uses the batch's statistics and its running statistics are left as they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        with frozen_statistics(model):
            model.train()  # first: a model that cannot be trained says so, and keeps its scales
            for module in model.modules():
                if isinstance(module, Scale):
                    module.reset()
            model(*inputs)
    finally:
        for module, mode in modes:
            module.training = mode
