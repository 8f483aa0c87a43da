"""Parameter groups and optimizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lowbit.layers import FakeQuantize, latent_parameters, quant_layers, scale_parameters
from lowbit.layers.inspect import QuantLayer
from lowbit.training.config import TrainConfig, resolve

LATENT = ("latent", "latent_scaled")
"""The parameter groups whose rate is `latent_lr`."""


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The trainable parameters of `model`, each in exactly one of five groups; empty groups are left out.

    - `latent`: weights behind a sign; `latent_lr`, `latent_weight_decay` or else none: their size changes nothing.
    - `latent_scaled`: weights behind a quantizer of more than two values; `latent_lr`, `latent_weight_decay` or else
      `weight_decay`.
    - `weights`: other weights of two or more dimensions; `lr`, `weight_decay`.
    - `plain`: biases and normalisation layers (one dimension or none); `lr`, no decay.
    - `scales`: learned scales of quantizers; `lr`, no decay.

    Decay on a normalisation layer or a scale does not limit what the network can compute, hence none there.
    Every group carries its `name` and its `base_lr`, which the schedule multiplies.
    """
    config = resolve(config)
    names = {id(parameter): "scales" for _, parameter in scale_parameters(model)}
    names |= {id(parameter): "latent_scaled" for _, parameter in latent_parameters(model)}
    names |= {id(layer.weight): "latent" for _, layer in quant_layers(model) if _behind_a_sign(layer)}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in (*LATENT, "weights", "plain", "scales")}
    for parameter in model.parameters():
        if parameter.requires_grad:
            members[names.get(id(parameter)) or _kind(parameter)].append(parameter)
    rates = dict.fromkeys(LATENT, config.latent_lr)
    given, common = config.latent_weight_decay, config.weight_decay
    decays = {"latent": given or 0.0, "latent_scaled": common if given is None else given, "weights": common}
    return [
        {
            "name": name,
            "params": parameters,
            "lr": rates.get(name, config.lr),
            "base_lr": rates.get(name, config.lr),
            "weight_decay": decays.get(name, 0.0),
        }
        for name, parameters in members.items()
        if parameters
    ]


def _behind_a_sign(layer: QuantLayer) -> bool:
    quantize = layer.weight_quantizer
    return isinstance(quantize, FakeQuantize) and quantize.quantizer.grid.binary


def _kind(parameter: nn.Parameter) -> str:
    return "weights" if parameter.ndim >= 2 else "plain"


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` asks for, over `parameter_groups(model, config)`."""
    groups = parameter_groups(model, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.momentum > 0)
    family = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return family(groups, betas=(config.momentum, 0.999))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its base."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["base_lr"]
