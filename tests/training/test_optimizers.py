from __future__ import annotations

import pytest
import torch
from torch import nn

import lowbit
from lowbit.training.config import TrainConfig
from lowbit.training.optimizers import build_optimizer, parameter_groups, set_learning_rates


def _model() -> nn.Module:
    float_model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )
    return lowbit.convert(float_model, weights=1, activations=2)


def _ids(parameters: list[nn.Parameter]) -> set[int]:
    return {id(parameter) for parameter in parameters}


def test_every_parameter_is_in_one_group_with_its_own_rate_and_decay() -> None:
    model = _model()
    config = TrainConfig(lr=0.1, latent_lr=2.0, weight_decay=1e-3, latent_weight_decay=1e-5)
    groups = {group["name"]: group for group in parameter_groups(model, config)}
    settings = {name: (group["lr"], group["base_lr"], group["weight_decay"]) for name, group in groups.items()}
    assert settings == {
        "latent": (2.0, 2.0, 1e-5),
        "weights": (0.1, 0.1, 1e-3),
        "plain": (0.1, 0.1, 0.0),
        "scales": (0.1, 0.1, 0.0),
    }
    assert _ids(groups["latent"]["params"]) == {id(model.get_parameter("3.weight"))}
    assert _ids(groups["weights"]["params"]) == {id(model.get_parameter(name)) for name in ("0.weight", "5.weight")}
    assert _ids(groups["scales"]["params"]) == {id(p) for _, p in lowbit.scale_parameters(model)} != set()
    placed = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(placed) == sorted(id(p) for p in model.parameters())


def test_latent_weights_take_the_common_rate_and_no_decay_by_default() -> None:
    groups = {group["name"]: group for group in parameter_groups(_model(), TrainConfig(lr=0.3, weight_decay=1e-3))}
    assert (groups["latent"]["lr"], groups["latent"]["weight_decay"]) == (0.3, 0.0)


@pytest.mark.parametrize(("given", "expected"), [(None, (0.0, 1e-3)), (0.0, (0.0, 0.0)), (1e-5, (1e-5, 1e-5))])
def test_only_latent_weights_behind_a_sign_escape_the_common_decay(
    given: float | None, expected: tuple[float, float]
) -> None:
    layers = [nn.Linear(4, 4) for _ in range(4)]
    model = lowbit.convert(nn.Sequential(*layers), weights=1, overrides={"2": {"weights": 2}})
    config = TrainConfig(lr=0.1, latent_lr=0.3, weight_decay=1e-3, latent_weight_decay=given)
    groups = {group["name"]: group for group in parameter_groups(model, config)}
    assert (groups["latent"]["weight_decay"], groups["latent_scaled"]["weight_decay"]) == expected
    assert groups["latent"]["lr"] == groups["latent_scaled"]["lr"] == 0.3
    assert _ids(groups["latent"]["params"]) == {id(model.get_parameter("1.weight"))}
    assert _ids(groups["latent_scaled"]["params"]) == {id(model.get_parameter("2.weight"))}


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert [group["name"] for group in parameter_groups(model, TrainConfig())] == ["weights"]


@pytest.mark.parametrize(
    ("name", "kind", "momentum"),
    [("sgd", torch.optim.SGD, 0.8), ("adam", torch.optim.Adam, 0.8), ("adamw", torch.optim.AdamW, 0.8)],
)
def test_the_optimizer_is_the_one_named(name: str, kind: type, momentum: float) -> None:
    optimizer = build_optimizer(_model(), TrainConfig(optimizer=name, momentum=momentum))  # type: ignore[arg-type]
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert group["momentum"] == momentum if name == "sgd" else group["betas"] == (momentum, 0.999)
    assert group.get("nesterov", True)


def test_sgd_without_momentum_is_plain() -> None:
    group = build_optimizer(_model(), TrainConfig(optimizer="sgd", momentum=0.0)).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.0, False)


def test_the_schedule_multiplies_each_groups_own_rate() -> None:
    optimizer = build_optimizer(_model(), TrainConfig(lr=0.1, latent_lr=2.0))
    for factor in (0.5, 0.25):
        set_learning_rates(optimizer, factor)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "latent": 0.5,
        "weights": 0.025,
        "plain": 0.025,
        "scales": 0.025,
    }
