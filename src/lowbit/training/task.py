"""From a configuration to data and a low-bit model, the same for training and for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit._errors import CheckpointError, ConfigError, LowbitError
from lowbit.data import Augmentation, Batches, ImageData, Normalization, Split, load_data, split_validation
from lowbit.layers import ConversionPlan, frozen_statistics, plan
from lowbit.models import build_model
from lowbit.quantizers.scale import Scale
from lowbit.training.checkpoint import load_checkpoint, shape_problems, shortened
from lowbit.training.config import FLOAT_BITS, TrainConfig, parse_overrides


@dataclass(frozen=True)
class Task:
    """The data of a run: training images, held-out validation images, test images, and how to normalise them."""

    data: ImageData
    train: Split
    validation: Split
    normalization: Normalization

    def batches(self, config: TrainConfig, device: torch.device, rank: int, world_size: int) -> Batches:
        """Shuffled, augmented training batches for one rank."""
        per_rank = config.batch_size // world_size
        augmentation = Augmentation(crop_padding=self.data.crop_padding, flip=self.data.flip)
        return Batches(
            self.train,
            per_rank,
            self.normalization,
            device=device,
            augmentation=augmentation if config.augment else None,
            shuffle=True,
            seed=config.seed,
            rank=rank,
            world_size=world_size,
            drop_last=len(self.train) >= config.batch_size,  # a ragged last step would weigh its few images more
            channels_last=config.channels_last,
        )


def load_task(config: TrainConfig) -> Task:
    """Load the data that `config` names and hold out its validation images. Raises: DataError, UnknownNameError."""
    data = load_data(config.data, config.data_path)
    amount = config.validation if config.validation < 1 else int(config.validation)
    train, validation = split_validation(data.train, amount, config.seed)
    return Task(data, train, validation, Normalization.of(data.train))


def build_float_model(config: TrainConfig, data: ImageData) -> nn.Module:
    """The model of `config` before conversion, freshly initialised and tried on a few images.

    Raises: LowbitError when it cannot be built, does not map images to one number per class, or cannot be trained on
    single images where that is asked for.
    """
    model = build_model(config.model, data.num_classes, data.in_channels, data.image_size, config.seed)
    outputs = _trial(model, config, data, images=2, training=False)
    expected = (2, data.num_classes)
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != expected:
        given = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"type {type(outputs).__name__}"
        raise ConfigError(
            f"model '{config.model}' returns an output of {given} for two images; expected shape {expected}: one "
            f"number for each of the {data.num_classes} classes of '{config.data}'"
        )
    if (
        config.batch_size // config.devices // config.accumulate == 1
    ):  # batch normalisation may refuse a single image, in training only
        _trial(model, config, data, images=1, training=True)
    return model


def _trial(model: nn.Module, config: TrainConfig, data: ImageData, *, images: int, training: bool) -> Any:
    """What the model makes of a few black images; mode, running statistics and random numbers are put back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with explained(config), frozen_statistics(model), torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(config.seed)  # layers that take their shape from the input start here
            return model.train(training)(torch.zeros(images, data.in_channels, *data.image_size))
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def explained(config: TrainConfig) -> Iterator[None]:
    """Turn whatever a model raises within the block into a ConfigError that names the model."""
    try:
        yield
    except LowbitError:
        raise
    except Exception as error:  # the model may be the user's: whatever it raises is the message
        text = str(error)
        if "more than 1 value per channel" in text:
            advice = ": batch normalisation has nothing to average over one image; take a larger --batch-size"
        elif "finished reduction in the prior iteration" in text:
            advice = (
                ": the loss does not reach every parameter, which training on several devices needs; take the unused "
                "parameters out of the model or freeze them (requires_grad_(False)), or train with --devices 1"
            )
        else:
            advice = f": {type(error).__name__}: {text}"
        raise ConfigError(f"model '{config.model}' fails{advice}") from error


def plan_low_bit(model: nn.Module, config: TrainConfig) -> ConversionPlan:
    """Which layers of `model` get the bits, quantizers and estimators that `config` asks for."""
    return plan(
        model,
        weights=config.weights,
        activations=config.activations,
        estimator=config.estimator,
        quantizer=config.quantizer,
        activation_quantizer=config.activation_quantizer,
        activation_estimator=config.activation_estimator,
        keep_float=config.keep_float,
        overrides=parse_overrides(config.overrides),
    )


def check_low_bit(decided: ConversionPlan, config: TrainConfig) -> None:
    """Raises: ConfigError when low bits were asked for and no layer gets them."""
    if min(config.weights, config.activations) < FLOAT_BITS and not decided.converted:
        raise ConfigError(
            f"--weights {config.weights} --activations {config.activations}, but no layer of '{config.model}' would be "
            f"low-bit: {decided.describe()}. Keep fewer layers in float (--keep-float with nothing after it keeps "
            f"none), or train in float with --weights {FLOAT_BITS} --activations {FLOAT_BITS}"
        )


def build_low_bit_model(config: TrainConfig, data: ImageData) -> tuple[nn.Module, ConversionPlan]:
    """The low-bit model of `config`, started from `config.init` where given, and the plan that it follows."""
    model = build_float_model(config, data)
    if config.init is None:
        decided = plan_low_bit(model, config)
        return decided.apply(), decided
    state = read_weights(config.init)
    _start_from(model, state, config.init)
    decided = plan_low_bit(model, config)
    model = decided.apply()
    _load_rest(model, state, config.init)
    return model, decided


def uncalibrated(model: nn.Module) -> bool:
    """Whether a learned scale still has to take its first value from data."""
    scales = (module for module in model.modules() if isinstance(module, Scale) and module.value is not None)
    return not all(bool(scale.initialized) for scale in scales)


_QUANTIZERS = {"weight_quantizer", "input_quantizer"}  # the modules that conversion adds to a layer


def _start_from(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    problems = [f"missing {name}" for name in own if name not in state] + shape_problems(own, state)
    if problems:
        raise CheckpointError(f"--init '{path}' does not fit this model: {shortened(problems)}")
    model.load_state_dict({name: value for name, value in state.items() if name in own})


def _load_rest(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load what only the converted model has: quantizer state, as far as it has the same quantizers."""
    own = model.state_dict()
    state = {
        name: value
        for name, value in state.items()
        if not _QUANTIZERS & set(name.split(".")) or (name in own and value.shape == own[name].shape)
    }
    problems = [f"unexpected {name}" for name in state if name not in own] + shape_problems(own, state)
    if problems:
        raise CheckpointError(f"--init '{path}' does not fit this model: {shortened(problems)}")
    model.load_state_dict(state, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a run folder, a .safetensors file or a `torch.save` file; never runs code from the file.

    Raises: CheckpointError when there is nothing of the kind at `path`.
    """
    if path.is_dir():
        return load_checkpoint(path / "best.ckpt").model
    if path.suffix == ".ckpt":
        return load_checkpoint(path).model
    if not path.is_file():
        raise CheckpointError(f"--init '{path}' does not exist; give a .safetensors or .pt file, or a run folder")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file surfaces as any of half a dozen types
        raise CheckpointError(f"--init '{path}' cannot be read as a state dict: {_first_line(error)}") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"--init '{path}' is not a state dict (names → tensors); save model.state_dict()")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
