"""What is measured while training: running means without stalling the device, and the guard against divergence."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lowbit._errors import DivergedError
from lowbit.diagnostics import LayerFigures
from lowbit.methods import StepRecord

SYNC_EVERY = 20
"""Steps between two looks at the device's losses."""

WINDOW = 50
"""Steps whose mean loss decides whether a run diverges."""

DIVERGENCE_FACTOR = 10.0
"""A run diverges when the mean loss of a window exceeds this many times the loss of a blind guess, or of the start."""


Layers: TypeAlias = dict[str, dict[str, float]]
"""Figures by layer, and within it by name."""


@dataclass(frozen=True)
class Window:
    """What a flush fetched: the steps since the last one.

    Args:
        losses: of each step, averaged over the ranks.
        metrics: means of the method's own metrics over these steps.
        layers: means of the layers' figures, over those of these steps at which they were taken.
    """

    losses: list[float]
    metrics: dict[str, float]
    layers: Layers


class _Means:
    """Means of named numbers; sums that are not finite do not count."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, ...], tuple[float, int]] = {}

    def add(self, name: tuple[str, ...], total: float, count: int) -> None:
        """Add `count` numbers whose sum is `total`."""
        before, seen = self._totals.get(name, (0.0, 0))
        self._totals[name] = (before + total, seen + count) if math.isfinite(total) else (before, seen)

    def update(self, other: _Means) -> None:
        """Add all that `other` has seen."""
        for name, (total, count) in other._totals.items():
            self.add(name, total, count)

    def items(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """Names and means, NaN for what was never finite."""
        return ((name, total / count if count else math.nan) for name, (total, count) in self._totals.items())


class EpochMeter:
    """Means over one epoch. Records stay on the device until `flush`, so a step never waits for its own loss."""

    def __init__(self, reduce: Callable[[Tensor], Tensor], world_size: int) -> None:
        self._reduce = reduce
        self._world_size = world_size
        self._pending: list[StepRecord] = []
        self._figures: dict[tuple[tuple[str, ...], str], list[Tensor]] = {}
        self._steps = 0
        self._loss = 0.0
        self._correct: int | None = 0
        self._metrics = _Means()
        self._layers = _Means()
        self._unseen = 0
        self.images = 0

    def add(self, record: StepRecord, images: int) -> None:
        """Note one step that saw `images` images on this rank."""
        self._pending.append(record)
        self._unseen += images * self._world_size
        self.add_figures(LayerFigures(record.layer_names, record.layer_metrics))

    def add_figures(self, figures: LayerFigures) -> None:
        """Note figures of layers, taken at the last step added."""
        for metric, values in figures.values.items():
            self._figures.setdefault((figures.names, metric), []).append(values)

    @property
    def pending(self) -> int:
        """Steps noted since the last flush."""
        return len(self._pending)

    def flush(self) -> Window:
        """Fetch from the device what was noted since the last flush: one transfer."""
        steps = len(self._pending)
        counted = all(record.correct is not None for record in self._pending)
        names = sorted(self._pending[0].metrics) if steps else []
        columns = []
        if steps:
            columns.append(torch.stack([record.loss for record in self._pending]))
            columns.append(torch.stack([_correct(record) for record in self._pending]))
        columns += [torch.stack([record.metrics[name] for record in self._pending]) for name in names]
        columns += [torch.stack(values).double().sum(0) for values in self._figures.values()]
        fetched = iter(self._fetch(columns))
        losses = [loss / self._world_size for loss in next(fetched)] if steps else []
        correct = sum(c for c in next(fetched) if math.isfinite(c)) if steps else 0
        metrics, layers = _Means(), _Means()
        for name in names:
            metrics.add((name,), sum(next(fetched)) / self._world_size, steps)
        for (layer_names, metric), values in self._figures.items():
            for layer, total in zip(layer_names, next(fetched), strict=True):
                layers.add((layer, metric), total / self._world_size, len(values))
        self._loss += sum(losses)
        self._correct = round(self._correct + correct) if counted and self._correct is not None else None
        self._metrics.update(metrics)
        self._layers.update(layers)
        self._steps += steps
        self.images += self._unseen
        self._unseen = 0
        self._pending.clear()
        self._figures.clear()
        return Window(losses, _plain(metrics), _by_layer(layers))

    def _fetch(self, columns: list[Tensor]) -> list[list[float]]:
        """The columns as numbers, summed over the ranks."""
        if not columns:
            return []
        flat = torch.cat([column.detach().double() for column in columns])
        numbers = iter(self._reduce(flat).tolist())
        return [[next(numbers) for _ in range(len(column))] for column in columns]

    @property
    def seen(self) -> int:
        """Images so far over all ranks, those of pending steps included."""
        return self.images + self._unseen

    @property
    def loss(self) -> float:
        """Mean loss per step so far, as of the last flush."""
        return self._loss / max(self._steps, 1)

    @property
    def accuracy(self) -> float | None:
        """Training accuracy so far, as of the last flush; None where the method does not count correct images."""
        return None if self._correct is None else self._correct / max(self.images, 1)

    @property
    def metrics(self) -> dict[str, float]:
        """Means of the method's own metrics."""
        return _plain(self._metrics)

    @property
    def layers(self) -> Layers:
        """Means of the layers' figures, each over the steps at which it was taken; NaN where it never was finite."""
        return _by_layer(self._layers)


def _correct(record: StepRecord) -> Tensor:
    return torch.zeros_like(record.loss) if record.correct is None else record.correct


def _plain(means: _Means) -> dict[str, float]:
    return {name: value for (name,), value in means.items()}


def _by_layer(means: _Means) -> Layers:
    layers: Layers = {}
    for (layer, metric), value in means.items():
        layers.setdefault(layer, {})[metric] = value
    return layers


def with_layers(record: dict[str, Any], metrics: dict[str, float], layers: Layers) -> dict[str, Any]:
    """A record as it is written down: with the method's metrics, every layer's figures, and their means over layers.

    Where names clash, what stands in `record` counts, then the method's metric. Numbers that are not finite become
    None, figures of layers are rounded to six digits, and without any there is no key `layers`.
    """
    means = _Means()
    for figures in layers.values():
        for name, value in figures.items():
            means.add((name,), value, 1)
    extra = {name: _finite(value) for name, value in (_plain(means) | metrics).items() if name not in record}
    if not layers:
        return record | extra
    rounded = {
        layer: {name: _finite(float(f"{value:.6g}")) for name, value in figures.items()}
        for layer, figures in layers.items()
    }
    return record | extra | {"layers": rounded}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
