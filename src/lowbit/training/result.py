"""What a run reports: its result, its opening line, and the explanation of a run that failed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.training.config import FLOAT_BITS, TrainConfig, to_dict
from lowbit.training.metrics import best_record

LAST, BEST = "last.ckpt", "best.ckpt"


@dataclass(frozen=True)
class TrainResult:
    """What a run reached; accuracies lie in [0, 1]."""

    run: str
    """The run folder."""
    test_accuracy: float
    """Test accuracy after the last epoch."""
    best_accuracy: float
    """Test accuracy at the epoch of the best validation accuracy; without validation images, the best test accuracy."""
    last10_mean: float
    """Mean test accuracy over the last ten epochs."""
    loss: float
    """Mean training loss of the last epoch, in nats."""
    epochs: int
    """Epochs trained, all sessions of a resumed run together."""
    seconds: float
    """Time of all epochs, evaluation included."""
    images_per_second: float
    """Training speed over all devices: the median over the epochs, without evaluation."""
    peak_memory_mib: float
    """Peak memory of rank 0: allocated on its CUDA device, or the process's resident set on the CPU."""
    config: dict[str, Any]
    """The configuration."""


def summarise(run: Path, config: TrainConfig, history: list[dict[str, Any]], peak_mib: float) -> TrainResult:
    """The result of a run from its epochs' records."""
    tests = [record["test_accuracy"] for record in history]
    return TrainResult(
        run=str(run),
        test_accuracy=tests[-1],
        best_accuracy=best_record(history)["test_accuracy"],
        last10_mean=statistics.fmean(tests[-10:]),
        loss=history[-1]["loss"],
        epochs=len(history),
        seconds=sum(record["seconds"] for record in history),
        images_per_second=statistics.median(record["images_per_second"] for record in history),
        peak_memory_mib=peak_mib,
        config=to_dict(config),
    )


def headline(config: TrainConfig, run: Path, counts: dict[str, int], device: str, epochs_done: int) -> str:
    """Two lines that say what is being trained, on what, and where it goes."""
    low_bit = config.weights < FLOAT_BITS or config.activations < FLOAT_BITS
    bits = [_bits(config.weights, "weights"), _bits(config.activations, "activations")] if low_bit else ["float"]
    shares = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    action = "run folder" if config.resume is None else f"continuing after epoch {epochs_done}"
    places = f"{config.devices} x {device}" if config.devices > 1 else device
    return (
        f"{config.model} with {', '.join(bits)}: {_estimators(config)}, method {config.method}, "
        f"{config.optimizer} at {config.lr:g} (latent weights {config.latent_lr:g})\n"
        f"{config.data}: {shares} images; {places}, {config.precision}; {action}: {run}"
    )


def _estimators(config: TrainConfig) -> str:
    """The estimators that act: the weights', the activations'."""
    acting = []
    if config.weights < FLOAT_BITS or config.activations == FLOAT_BITS:
        acting.append(f"estimator {config.estimator}")
    if config.activations < FLOAT_BITS:
        acting.append(f"activation estimator {config.activation_estimator or 'clipped'}")
    return ", ".join(acting)


def _bits(bits: int, what: str) -> str:
    return f"float {what}" if bits == FLOAT_BITS else f"{bits}-bit {what}"


def closing_line(result: TrainResult) -> str:
    """One line with what was reached and what to type next."""
    return (
        f"test accuracy {100 * result.test_accuracy:.2f} % (at the best epoch {100 * result.best_accuracy:.2f} %) "
        f"in {result.seconds:.1f} s; look again: lowbit eval {result.run}"
    )


def explain_divergence(problem: str, run: Path, epoch: int, config: TrainConfig) -> str:
    """The whole message of a diverged run: what happened, the usual causes, and what is left of the run.

    `epoch` counts the epochs done.
    """
    causes = [f"--latent-lr ({config.latent_lr:g}) or --lr ({config.lr:g}) too high: try a tenth"]
    if config.clip_norm is None:
        causes.append("no gradient clipping: try --clip-norm 1")
    if min(config.weights, config.activations) == 1:
        causes.append("1-bit layers without batch normalisation or a scale behind them")
    if config.precision == "bf16":
        causes.append("sums too long for bf16: try --precision fp32")
    moment = f"of epoch {epoch}" if epoch else "from before the first step"
    return (
        f"training stopped in epoch {epoch + 1}: {problem}.\n"
        + "Usual causes, the most likely first:\n"
        + "".join(f"  - {cause}\n" for cause in causes)
        + f"The last good checkpoint, {run / LAST}, is that {moment}; metrics are in {run}."
    )
