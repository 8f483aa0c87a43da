"""One forward pass in which every part of the batch sees weights of its own, and so gets its own gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowbit._errors import ConfigError
from lowbit.layers.inspect import QUANT_LAYERS, QuantLayer, plain_name, quant_layers


@contextmanager
def weights_per_part(model: nn.Module, weights: Mapping[int, Sequence[Tensor]], batch_size: int) -> Iterator[None]:
    """Within the block, the low-bit layers use `weights[id(latent)][a]` in place of the latent weight for part a.

    The batch is cut into equal consecutive parts along dimension 0. Everything but these layers sees the batch whole:
    batch normalisation takes its statistics over all parts together.

    Args:
        model: a converted model, wrapped or not; compiled parts of it run uncompiled within the block.
        weights: by the id of the latent weight, one stand-in for each part: same shape, same number for all.
        batch_size: examples in the whole batch.

    Raises: ConfigError where a layer outside of these uses one of the weights, and, within the block, where a layer's
    inputs are not laid out example by example as far as their shape tells. A layer whose inputs begin with another axis
    that happens to be a multiple of the batch is not recognised.
    """
    for name, module in model.named_modules():
        if not isinstance(module, QUANT_LAYERS) and any(id(p) in weights for p in module.parameters(recurse=False)):
            raise ConfigError(
                f"layer '{plain_name(name)}' shares its weight with a low-bit layer: the parts of a batch cannot have "
                "weights of their own there; take together=False"
            )
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, layer in quant_layers(model):
            if id(layer.weight) in weights:
                stack.enter_context(_parted(name, layer, weights[id(layer.weight)], batch_size))
        yield


@contextmanager
def _parted(name: str, layer: QuantLayer, weights: Sequence[Tensor], batch_size: int) -> Iterator[None]:
    whole: Callable[..., Tensor] = type(layer).forward
    latent, parameters = layer.weight, cast(dict[str, Tensor], layer._parameters)

    def forward(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if input.ndim < 2 or input.shape[0] % batch_size:
            raise ConfigError(
                f"layer '{name}' gets inputs of shape {tuple(input.shape)} for a batch of {batch_size}: the examples "
                "do not lie along its first dimension and cannot be told apart; take together=False"
            )
        results = []
        try:
            for weight, part in zip(weights, input.chunk(len(weights)), strict=True):
                parameters["weight"] = weight
                results.append(whole(layer, part, *args, **kwargs))
        finally:
            parameters["weight"] = latent
        return torch.cat(results)

    layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        del layer.__dict__["forward"]
