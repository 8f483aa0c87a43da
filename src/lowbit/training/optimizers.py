"""Parameter groups and optimizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lowbit.layers import latent_parameters, scale_parameters
from lowbit.training.config import TrainConfig, resolve


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The trainable parameters of `model`, each in exactly one of four groups; empty groups are left out.

    - `latent`: weights behind a quantizer; `latent_lr`, `latent_weight_decay`.
    - `weights`: other weights of two or more dimensions; `lr`, `weight_decay`.
    - `plain`: biases and normalisation layers (one dimension or none); `lr`, no decay.
    - `scales`: learned scales of quantizers; `lr`, no decay.

    Decay on a normalisation layer or a scale does not limit what the network can compute, hence none there.
    Every group carries its `name` and its `base_lr`, which the schedule multiplies.
    """
    config = resolve(config)
    latent = {id(parameter) for _, parameter in latent_parameters(model)}
    scales = {id(parameter) for _, parameter in scale_parameters(model)} - latent
    members: dict[str, list[nn.Parameter]] = {"latent": [], "weights": [], "plain": [], "scales": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = id(parameter)
            name = "latent" if key in latent else "scales" if key in scales else _kind(parameter)
            members[name].append(parameter)
    rates = {"latent": config.latent_lr}
    decays = {"latent": config.latent_weight_decay, "weights": config.weight_decay}
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
