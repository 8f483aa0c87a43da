from __future__ import annotations

import math
import warnings

import pytest
import torch

from lowbit import ConfigError
from lowbit.training.config import TrainConfig
from lowbit.training.schedule import check_extension, cosine, learning_rate_factor, onecycle


def _torch_curve(make: object, steps: int) -> list[float]:
    """What a scheduler of torch gives a rate of 1 over `steps` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)  # type: ignore[operator]
    curve = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the scheduler misses the optimizer's steps, which play no part here
        for _ in range(steps):
            curve.append(optimizer.param_groups[0]["lr"])
            scheduler.step() if len(curve) < steps else None
    return curve


@pytest.mark.parametrize("total", [7, 20, 400])
def test_onecycle_is_torchs(total: int) -> None:
    schedulers = torch.optim.lr_scheduler
    expected = _torch_curve(
        lambda o: schedulers.OneCycleLR(o, max_lr=1.0, total_steps=total, cycle_momentum=False), total
    )
    assert [onecycle(step, total) for step in range(total)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_onecycle_of_few_steps_stays_within_bounds(total: int) -> None:
    assert all(0 < onecycle(step, total) <= 1 for step in range(total))


def test_cosine_is_torchs() -> None:
    factor = learning_rate_factor(TrainConfig(schedule="cosine", epochs=5), steps_per_epoch=8)
    expected = _torch_curve(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=40), 40)
    assert [factor(step) for step in range(40)] == pytest.approx(expected, abs=1e-12)
    assert (cosine(0.0), cosine(0.5), cosine(1.0)) == pytest.approx((1.0, 0.5, 0.0), abs=1e-15)


def test_steps_fall_at_fractions_and_at_epochs() -> None:
    config = TrainConfig(schedule="step", epochs=8, gamma=0.5, milestones=(0.25, 6.0))
    factor = learning_rate_factor(config, steps_per_epoch=10)
    assert [factor(step) for step in (0, 19, 20, 59, 60, 79)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_warmup_rises_in_a_straight_line_to_the_schedule(schedule: str) -> None:
    config = TrainConfig(schedule=schedule, epochs=10, warmup_epochs=0.5, milestones=(0.9,))  # type: ignore[arg-type]
    factor = learning_rate_factor(config, steps_per_epoch=8)
    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_after_warmup_covers_what_is_left() -> None:
    factor = learning_rate_factor(TrainConfig(schedule="cosine", epochs=10, warmup_epochs=2.0), steps_per_epoch=10)
    assert factor(60) == pytest.approx(0.5 * (1 + math.cos(math.pi * 40 / 80)))


def test_constant_is_constant() -> None:
    factor = learning_rate_factor(TrainConfig(schedule="constant"), steps_per_epoch=3)
    assert {factor(step) for step in range(60)} == {1.0}


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(schedule="cosine", epochs=6),
        TrainConfig(schedule="onecycle", epochs=6),
        TrainConfig(schedule="step", milestones=(0.5,), epochs=6),
    ],
)
def test_a_schedule_over_the_whole_run_cannot_be_extended(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="--epochs 6 cannot extend this run of 4 epochs"):
        check_extension(config, before=4)
    check_extension(config, before=6)


@pytest.mark.parametrize(
    "config", [TrainConfig(schedule="constant", epochs=6), TrainConfig(schedule="step", milestones=(2.0,), epochs=6)]
)
def test_extending_keeps_the_rates_of_the_steps_already_taken(config: TrainConfig) -> None:
    check_extension(config, before=4)
    before = learning_rate_factor(TrainConfig(schedule=config.schedule, milestones=config.milestones, epochs=4), 5)
    after = learning_rate_factor(config, 5)
    assert [before(step) for step in range(20)] == [after(step) for step in range(20)]
