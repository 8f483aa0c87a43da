"""The training loop."""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from lowbit._errors import CheckpointError, ConfigError, DivergedError
from lowbit.diagnostics import LayerFigures, WeightMonitor, gradient_mismatch
from lowbit.layers import anneals, calibrate, cautions, set_progress
from lowbit.methods import build_method
from lowbit.training import runtime
from lowbit.training.checkpoint import Checkpoint, load_checkpoint, load_state, save_checkpoint
from lowbit.training.config import FIELDS, TrainConfig, from_dict, resolve, resumed_config, to_dict
from lowbit.training.evaluation import Evaluator
from lowbit.training.metrics import SYNC_EVERY, EpochMeter, LossGuard, best_record, check_finite, with_layers
from lowbit.training.optimizers import LATENT, build_optimizer, set_learning_rates
from lowbit.training.progress import ProgressDisplay, warnings_of
from lowbit.training.result import BEST, LAST, TrainResult, closing_line, explain_divergence, headline, summarise
from lowbit.training.run_folder import check_unused, create_run_folder, write_description
from lowbit.training.run_log import RunLog
from lowbit.training.schedule import check_extension, learning_rate_factor
from lowbit.training.task import (
    build_low_bit_model,
    check_low_bit,
    explained,
    load_task,
    uncalibrated,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# What the user may change when resuming; of these, what changes the rounding of every step.
_MAY_CHANGE = ("epochs", "data_path", "out", "resume", "eval_batch_size", "device", "threads")
_INEXACT = ("device", "threads")


def train(config: TrainConfig) -> TrainResult:
    """Train a low-bit network as `config` says; with `config.resume`, continue the run in that folder.

    Leaves a run folder with `config.yaml`, `environment.json`, `metrics.jsonl`, `steps.jsonl`, TensorBoard scalars,
    `last.ckpt` and `best.ckpt`. Progress goes to standard error. Threads, seeds and flags are put back afterwards.

    Raises:
        ConfigError, UnknownNameError: a setting that does not exist or does not fit.
        DataError: a data file that is missing or damaged.
        CheckpointError: a run that cannot be resumed.
        DivergedError: the loss became NaN or infinite, or ran away; the last good checkpoint is kept.
    """
    config = resolve(config)
    if config.resume is None:
        check_unused(config.out)
    else:
        _check_same(config, resumed_config(config.resume))
    return runtime.launch(_run, config)


def _run(fabric: Fabric, config: TrainConfig) -> TrainResult:
    trainer = _Trainer(fabric, config)
    if config.resume is not None:
        trainer.restore(load_checkpoint(config.resume / LAST))
    trainer.setup()
    run = runtime.on_rank_zero(fabric, lambda: config.resume or create_run_folder(config))
    done = len(trainer.history) if config.resume else None
    runtime.on_rank_zero(fabric, lambda: write_description(run, config, fabric.device, done))
    if config.resume is None:
        trainer.save(run)  # a run stopped in its first epoch can be continued too
    log = RunLog(fabric, run, trainer.history)
    display = ProgressDisplay(
        shown=fabric.is_global_zero,
        epochs=config.epochs,
        epochs_done=len(trainer.history),
        steps_per_epoch=len(trainer.batches),
    )
    try:
        with display:
            display.line(headline(config, run, trainer.counts, fabric.device.type, len(trainer.history)))
            for line in trainer.notes:
                display.line(line)
            for epoch in range(len(trainer.history), config.epochs):
                record = trainer.epoch(epoch, display, log)
                log.epoch(record)
                for line in warnings_of(record):
                    display.line(line)
                best = trainer.save(run)
                display.epoch(record, best)
            result = summarise(run, config, trainer.history, runtime.peak_memory_mib(fabric.device))
            display.line(closing_line(result))
    except KeyboardInterrupt:
        epoch = len(trainer.history) + 1
        display.line(f"interrupted in epoch {epoch}; continue with: lowbit train --resume {run}")
        raise
    except DivergedError as error:
        raise DivergedError(explain_divergence(str(error), run, len(trainer.history), config)) from None
    finally:
        log.close()
    return result


class _Trainer:
    """One process's part of a run: what moves while training, and one epoch of moving it."""

    def __init__(self, fabric: Fabric, config: TrainConfig) -> None:
        self.fabric = fabric
        self.config = config
        self.history: list[dict[str, Any]] = []
        self.task = load_task(config)
        # A run that goes on has its weights in its checkpoint: the file it once started from may be gone.
        start = config if config.resume is None else replace(config, init=None)
        self.model, decided = build_low_bit_model(start, self.task.data)
        self.notes = [decided.describe()]
        self.notes += [f"warning: {caution}" for caution in cautions(decided)]
        check_low_bit(decided, config)
        if config.compile and anneals(self.model):
            raise ConfigError(
                f"--compile and --estimator {config.estimator} exclude each other: the estimator anneals, so the model "
                "would be compiled anew at every epoch, until torch gives up and runs it uncompiled. Leave out "
                "--compile, or take an estimator that does not anneal"
            )
        if config.epochs == 1 and anneals(self.model):
            self.notes.append(
                f"--estimator {config.estimator} changes from epoch to epoch: in a single one it stays as it starts"
            )
        runtime.place(fabric, self.model, config.channels_last)
        if config.resume is None and uncalibrated(self.model):
            # The first batch of all ranks together, so that the scales do not depend on the number of devices.
            images, _ = next(self.task.batches(config, fabric.device, 0, 1).epoch(0))
            with explained(config):
                calibrate(self.model, images)
        self.optimizer = build_optimizer(self.model, config)
        self.method = build_method(
            config.method, backward=fabric.backward, clip_norm=config.clip_norm, micro_batches=config.accumulate
        )
        self.method.check(self.model, self.optimizer)
        self.monitor = WeightMonitor(self.model, config.diagnostics)
        self.guard = LossGuard(self.task.data.num_classes)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images per split."""
        task = self.task
        return {"training": len(task.train), "validation": len(task.validation), "test": len(task.data.test)}

    def restore(self, saved: Checkpoint) -> None:
        """Go back to a checkpoint of this run. Raises: CheckpointError or ConfigError when it is not of this run."""
        before = from_dict(saved.config, "the checkpoint")
        _check_same(self.config, before)
        if self.config.epochs < saved.epoch:
            raise ConfigError(f"--epochs {self.config.epochs}: the run has done {saved.epoch} epochs already")
        if len(saved.rng) != self.fabric.world_size:
            raise CheckpointError(f"the checkpoint is one of {len(saved.rng)} processes; resume with as many")
        load_state(self.model, saved.model, "the checkpoint to resume from")
        if before.epochs != self.config.epochs and anneals(self.model):
            raise ConfigError(
                f"--epochs {self.config.epochs}: the run anneals its estimator over its own number of epochs, so that "
                "more epochs would not be a longer run but another one; start it with --init"
            )
        self.optimizer.load_state_dict(saved.optimizer)
        self.method.load_state_dict(self.fabric.to_device(saved.method))
        self.guard.load_state_dict(saved.guard)
        self.monitor.load_state_dict(self.fabric.to_device(saved.monitor))
        self.history = list(saved.history)
        self.notes += [
            f"--{name} is {getattr(self.config, name)}, it was {getattr(before, name)}: the run goes on, but need not "
            "repeat exactly what it would have done without the change"
            for name in _INEXACT
            if getattr(self.config, name) != getattr(before, name)
        ]
        runtime.restore_rng(self.fabric, saved.rng)

    def setup(self) -> None:
        """Wrap the model for its devices, compile it if asked to, and make the batches."""
        fabric, config, task = self.fabric, self.config, self.task
        model: Any = torch.compile(self.model) if config.compile else self.model
        self.wrapped, self.stepper = fabric.setup(model, self.optimizer)
        self.batches = task.batches(config, fabric.device, fabric.global_rank, fabric.world_size)
        self.factor = learning_rate_factor(config, len(self.batches))
        self.loss_fn = functools.partial(cross_entropy, label_smoothing=config.label_smoothing)
        self.test = Evaluator(fabric, task.data.test, task.normalization, config)
        self.validation = Evaluator(fabric, task.validation, task.normalization, config)

    def epoch(self, epoch: int, display: ProgressDisplay, log: RunLog) -> dict[str, Any]:
        """Train epoch number `epoch`, counted from 0, and evaluate; returns its record."""
        started = time.perf_counter()
        set_progress(self.model, epoch / max(1, self.config.epochs - 1))  # the last epoch trains at the end value
        self.wrapped.train()
        meter = EpochMeter(functools.partial(runtime.all_sum, self.fabric), self.fabric.world_size)
        step = epoch * len(self.batches)
        for batch in self.batches.epoch(epoch):
            set_learning_rates(self.optimizer, self.factor(step))
            self.monitor.before_step(step)
            with explained(self.config):
                record = self.method.step(self.wrapped, batch, self.loss_fn, self.stepper)
            meter.add(record, len(batch[1]))
            meter.add_figures(self.monitor.after_step(step))
            step += 1
            if meter.pending == SYNC_EVERY:
                self._look(meter, epoch, step, log)
            display.step(epoch + 1, step, meter, started)
        self._look(meter, epoch, step, log)
        trained = time.perf_counter() - started
        runtime.share_buffers(self.fabric, self.model)
        check_finite(self.model, step)
        meter.add_figures(self._mismatch(batch, epoch))
        meter.flush()
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        record_of_epoch = {
            "epoch": epoch + 1,
            "loss": meter.loss,
            "train_accuracy": meter.accuracy,
            "val_accuracy": self.validation.score(self.model).accuracy if len(self.validation) else None,
            "test_accuracy": self.test.score(self.model).accuracy,
            "lr": self.factor(step - 1) * (self.config.lr or 0.0),
            "latent_lr": next((rates[name] for name in LATENT if name in rates), None),
            "seconds": time.perf_counter() - started,
            "images_per_second": meter.images / trained,
        }
        record_of_epoch = with_layers(record_of_epoch, meter.metrics, meter.layers)
        self.history.append(record_of_epoch)
        return record_of_epoch

    def _look(self, meter: EpochMeter, epoch: int, step: int, log: RunLog) -> None:
        """Fetch what the steps up to `step` left on the device, judge their losses and write them down."""
        window = meter.flush()
        if not window.losses:
            return
        self.guard.check(window.losses, step)
        loss = sum(window.losses) / len(window.losses)
        line = {"step": step, "epoch": epoch + 1, "loss": loss, "lr": self.factor(step - 1) * (self.config.lr or 0.0)}
        log.steps(with_layers(line, window.metrics, window.layers))

    def _mismatch(self, batch: tuple[torch.Tensor, torch.Tensor], epoch: int) -> LayerFigures:
        """The mismatch of the estimators' gradients on `batch`, where the configuration asks for it."""
        config = self.config
        if not config.mismatch_samples:
            return LayerFigures()
        generator = torch.Generator().manual_seed(config.seed + epoch)
        with explained(config):
            return gradient_mismatch(self.model, batch, self.loss_fn, config.mismatch_samples, generator)

    def save(self, run: Path) -> bool:
        """Write the checkpoints after an epoch, or before the first one; whether it is the best so far."""
        best = bool(self.history) and best_record(self.history) is self.history[-1]
        rng = runtime.rng_states(self.fabric)
        runtime.on_rank_zero(self.fabric, functools.partial(self._write, run, rng, best))
        return best

    def _write(self, run: Path, rng: list[dict[str, torch.Tensor]], best: bool) -> None:
        normalization = self.task.normalization
        checkpoint = Checkpoint(
            epoch=len(self.history),
            config=to_dict(self.config),
            classes=list(self.task.data.classes),
            normalization={"mean": list(normalization.mean), "std": list(normalization.std)},
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            method=self.method.state_dict(),
            guard=self.guard.state_dict(),
            monitor=self.monitor.state_dict(),
            rng=rng,
            history=self.history,
        )
        for name in (BEST, LAST) if best else (LAST,):
            save_checkpoint(run / name, checkpoint)


def _check_same(config: TrainConfig, before: TrainConfig) -> None:
    """Raises: ConfigError naming every option that contradicts the configuration `before` of the run to be resumed."""
    if config.out is not None and config.resume is not None and config.out.absolute() != config.resume.absolute():
        raise ConfigError(f"--out '{config.out}' contradicts --resume '{config.resume}': a run continues in its folder")
    differing = [
        f"--{name.replace('_', '-')} {_shown(getattr(config, name))} (the run: {_shown(getattr(before, name))})"
        for name in FIELDS
        if name not in _MAY_CHANGE and getattr(config, name) != getattr(before, name)
    ]
    if differing:
        raise ConfigError(
            f"a resumed run keeps its configuration, but these differ: {', '.join(differing)}. Leave them out, or "
            f"start a new run from these weights with --init"
        )
    check_extension(config, before.epochs)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) or "''" if isinstance(value, tuple) else str(value)
