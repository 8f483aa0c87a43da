"""What a person sees while a run goes on: on standard error, so that standard output stays free for `--json`."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from lowbit.training.metrics import EpochMeter

_REFRESH = 0.1  # seconds between two redraws of the bar
_PLAIN = 30.0  # seconds between two lines within an epoch where there is no terminal


def warnings_of(record: dict[str, Any]) -> list[str]:
    """What an epoch's record gives cause to say: that layers have not learned, because their gate stayed shut."""
    shut = [name for name, figures in record.get("layers", {}).items() if figures.get("gated") == 1]
    if not shut:
        return []
    return [
        f"epoch {record['epoch']}: N stayed above ε, so that the loss did not move {', '.join(shut)}; give a larger "
        "epsilon, or a smaller --latent-lr"
    ]


class ProgressDisplay:
    """A bar on a terminal, plain lines elsewhere, nothing at all when not `shown`."""

    def __init__(self, *, shown: bool, epochs: int, epochs_done: int, steps_per_epoch: int) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=not shown, soft_wrap=True)
        self._live = shown and self._console.is_terminal
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._first_step = epochs_done * steps_per_epoch
        self._started = self._last = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            auto_refresh=False,
            transient=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task("", total=epochs * steps_per_epoch, completed=self._first_step, figures="")

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        self._started = self._last = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def line(self, text: str) -> None:
        """Print one line of text as it is."""
        self._bar.console.print(text, markup=False)

    def step(self, epoch: int, step: int, meter: EpochMeter, started: float) -> None:
        """Show where step `step` of the whole run stands, in epoch `epoch` that `started` then; cheap at every step."""
        now = time.perf_counter()
        if meter.images == 0 or now - self._last < (_REFRESH if self._live else _PLAIN):
            return
        self._last = now
        left = _clock(self._left(step, now))
        figures = f"{_figures(meter.loss, meter.accuracy)}  {meter.seen / (now - started):,.0f} images/s  {left} left"
        if self._live:
            self._bar.update(self._task, completed=step, description=self._epoch(epoch), figures=figures, refresh=True)
        else:
            within = step - (epoch - 1) * self._steps_per_epoch
            self.line(f"{self._epoch(epoch)}  step {within}/{self._steps_per_epoch}  {figures}")

    def epoch(self, record: dict[str, Any], best: bool) -> None:
        """Print the line of a finished epoch."""
        step = record["epoch"] * self._steps_per_epoch
        held_out = "" if record["val_accuracy"] is None else f"  validation {_percent(record['val_accuracy'])}"
        self.line(
            f"{self._epoch(record['epoch'])}  {_figures(record['loss'], record['train_accuracy'])}{held_out}"
            f"  test {_percent(record['test_accuracy'])}  {record['images_per_second']:,.0f} images/s"
            f"  {_clock(self._left(step, time.perf_counter()))} left{'  best so far' if best else ''}"
        )
        if self._live:
            self._bar.update(self._task, completed=step, refresh=True)

    def _epoch(self, epoch: int) -> str:
        return f"epoch {epoch:>{len(str(self._epochs))}}/{self._epochs}"

    def _left(self, step: int, now: float) -> float:
        done = step - self._first_step
        total = self._epochs * self._steps_per_epoch
        return (now - self._started) / done * (total - step) if done > 0 else 0.0


def _figures(loss: float, accuracy: float | None) -> str:
    return f"loss {loss:7.4f}" + ("" if accuracy is None else f"  train {_percent(accuracy)}")


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:5.2f} %"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
