"""What is measured while training: running means without stalling the device, and the guard against divergence."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lowbit._errors import DivergedError
from lowbit.methods import StepRecord

SYNC_EVERY = 20
"""Steps between two looks at the device's losses."""

WINDOW = 50
"""Steps whose mean loss decides whether a run diverges."""

DIVERGENCE_FACTOR = 10.0
"""A run diverges when the mean loss of a window exceeds this many times the loss of a blind guess, or of the start."""


class EpochMeter:
    """Means over one epoch. Records stay on the device until `flush`, so a step never waits for its own loss."""

    def __init__(self, reduce: Callable[[Tensor], Tensor], world_size: int) -> None:
        self._reduce = reduce
        self._world_size = world_size
        self._pending: list[StepRecord] = []
        self._steps = 0
        self._loss = 0.0
        self._correct = 0
        self._metrics: dict[str, float] = {}
        self._unseen = 0
        self.images = 0

    def add(self, record: StepRecord, images: int) -> None:
        """Note one step that saw `images` images on this rank."""
        self._pending.append(record)
        self._unseen += images * self._world_size

    @property
    def pending(self) -> int:
        """Steps noted since the last flush."""
        return len(self._pending)

    def flush(self) -> list[float]:
        """Fetch the pending steps from the device and return their losses, averaged over the ranks."""
        if not self._pending:
            return []
        names = sorted(self._pending[0].metrics)
        columns = [
            torch.stack([record.loss.double() for record in self._pending]),
            torch.stack([_correct(record) for record in self._pending]),
            *(torch.stack([record.metrics[name].double() for record in self._pending]) for name in names),
        ]
        table = self._reduce(torch.stack(columns).detach()).tolist()
        losses = [loss / self._world_size for loss in table[0]]
        self._loss += sum(losses)
        self._correct += round(sum(c for c in table[1] if math.isfinite(c)))
        for name, values in zip(names, table[2:], strict=True):
            self._metrics[name] = self._metrics.get(name, 0.0) + sum(values) / self._world_size
        self._steps += len(losses)
        self.images += self._unseen
        self._unseen = 0
        self._pending.clear()
        return losses

    @property
    def seen(self) -> int:
        """Images so far over all ranks, those of pending steps included."""
        return self.images + self._unseen

    @property
    def loss(self) -> float:
        """Mean loss per step so far, as of the last flush."""
        return self._loss / max(self._steps, 1)

    @property
    def accuracy(self) -> float:
        """Training accuracy so far, as of the last flush; 0 where the method does not count correct images."""
        return self._correct / max(self.images, 1)

    @property
    def metrics(self) -> dict[str, float]:
        """Means of the method's own metrics."""
        return {name: total / max(self._steps, 1) for name, total in self._metrics.items()}


def _correct(record: StepRecord) -> Tensor:
    return record.loss.new_zeros((), dtype=torch.float64) if record.correct is None else record.correct.double()


class LossGuard:
    """Stops a run whose loss is NaN or infinite, or runs away.

    Running away means: the mean loss of the last 50 steps exceeds 10 · max(mean of the first 10 steps, ln(classes)),
    ln(classes) being the loss of a blind guess. A sound start and a noisy one both stay far below. Ours, not from a
    paper.
    """

    def __init__(self, num_classes: int) -> None:
        self._guess = math.log(max(num_classes, 2))
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def check(self, losses: list[float], last_step: int) -> None:
        """Look at the losses of the steps up to `last_step`, counted from 1. Raises: DivergedError naming the step."""
        for offset, loss in enumerate(losses):
            step = last_step - len(losses) + 1 + offset
            if not math.isfinite(loss):
                raise DivergedError(f"the loss became {'NaN' if math.isnan(loss) else 'infinite'} at step {step}")
            if len(self._first) < 10:
                self._first.append(loss)
            self._recent.append(loss)
            mean = sum(self._recent) / len(self._recent)
            bound = DIVERGENCE_FACTOR * max(sum(self._first) / len(self._first), self._guess)
            if len(self._recent) == WINDOW and mean > bound:
                raise DivergedError(
                    f"the loss ran away: its mean over the {WINDOW} steps up to step {step} is {mean:.3g}, "
                    f"more than {bound:.3g}"
                )

    def state_dict(self) -> dict[str, list[float]]:
        """What a resumed run needs to go on judging as before."""
        return {"first": list(self._first), "recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Take over what `state_dict` gave."""
        self._first = list(state["first"])
        self._recent = deque(state["recent"], maxlen=WINDOW)


def check_finite(model: nn.Module, step: int) -> None:
    """Make sure that no parameter or buffer is NaN or infinite after `step` steps. Raises: DivergedError."""
    floats = [value for value in model.state_dict().values() if value.is_floating_point()]
    if floats and not bool(torch.stack([value.isfinite().all() for value in floats]).all()):
        raise DivergedError(f"the model's parameters became NaN or infinite by step {step}")


def best_record(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch that counts as best: the highest validation accuracy, or test accuracy where nothing was held out.

    Of equal epochs the first one counts.
    """
    return max(history, key=_score)


def _score(record: dict[str, Any]) -> float:
    value = record["test_accuracy"] if record["val_accuracy"] is None else record["val_accuracy"]
    return float(value)
