"""Learning-rate schedules as pure functions of the step, so that a resumed run continues exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

from lowbit._errors import ConfigError
from lowbit.training.config import TrainConfig

_RISE = 0.3  # part of a onecycle run spent going up
_START = 1 / 25  # rate at a onecycle's first step, relative to the peak
_END = _START / 1e4  # rate at a onecycle's last step


def constant(t: float) -> float:
    """1 at every t."""
    return 1.0


def cosine(t: float) -> float:
    """½(1 + cos πt): from 1 at t = 0 to 0 at t = 1. Loshchilov and Hutter 2017, 1608.03983, Eq. 5 without restarts."""
    return 0.5 * (1.0 + math.cos(math.pi * t))


def onecycle(step: int, total: int) -> float:
    """Up to 1 over the first 30 % of the steps and down to nearly 0, both along a half cosine. Smith 2018, 1708.07120.

    The same curve as `torch.optim.lr_scheduler.OneCycleLR` with its default settings, relative to `max_lr`.
    """
    peak = max(_RISE * total - 1.0, 0.0)
    if step <= peak:
        return _blend(_START, 1.0, step / peak if peak else 1.0)
    last = total - 1.0
    return _blend(1.0, _END, (step - peak) / (last - peak))


def _blend(start: float, end: float, t: float) -> float:
    return end + (start - end) * cosine(t)


def steps(epoch: float, milestones: tuple[float, ...], gamma: float) -> float:
    """γ to the number of milestones (in epochs) that lie at or before `epoch`."""
    return float(gamma ** sum(epoch >= milestone for milestone in milestones))


def learning_rate_factor(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The factor on every group's base learning rate, as a function of the step counted from 0 over the whole run.

    Warm-up is (step + 1)/warm-up steps; constant, cosine and step schedules follow it, the cosine over what is left.
    """
    total = config.epochs * steps_per_epoch
    warmup = round(config.warmup_epochs * steps_per_epoch)
    milestones = tuple(m if m >= 1 else m * config.epochs for m in config.milestones)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if config.schedule == "onecycle":
            return onecycle(step, total)
        if config.schedule == "cosine":
            return cosine((step - warmup) / (total - warmup))
        if config.schedule == "step":
            return steps(step / steps_per_epoch, milestones, config.gamma)
        return constant(step)

    return factor


def check_extension(config: TrainConfig, before: int) -> None:
    """Refuse to change the number of epochs of a run whose schedule was laid out over all of them.

    Raises: ConfigError when the steps already taken would have had other learning rates.
    """
    if config.epochs == before:
        return
    fractions = config.schedule == "step" and any(milestone < 1 for milestone in config.milestones)
    if config.schedule in ("cosine", "onecycle") or fractions:
        name = "step with milestones given as fractions" if fractions else config.schedule
        raise ConfigError(
            f"--epochs {config.epochs} cannot extend this run of {before} epochs: schedule {name} is laid out over the "
            f"whole run, so the epochs already done would have used other learning rates. Start a new run from these "
            f"weights with --init, or plan for extension with --schedule constant (or step with milestones in epochs)"
        )
