"""From a configuration to data and a low-bit model, the same for training and for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit._errors import CheckpointError
from lowbit.data import Augmentation, Batches, ImageData, Normalization, Split, load_data, split_validation
from lowbit.layers import convert
from lowbit.models import build_model
from lowbit.training.checkpoint import load_checkpoint, shape_problems, shortened
from lowbit.training.config import TrainConfig, parse_overrides


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
    """The model of `config` before conversion, freshly initialised."""
    return build_model(config.model, data.num_classes, data.in_channels, data.image_size, config.seed)


def to_low_bit(model: nn.Module, config: TrainConfig) -> nn.Module:
    """A copy of `model` with the layers, bits, quantizers and estimators that `config` asks for."""
    return convert(
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


def build_low_bit_model(config: TrainConfig, data: ImageData) -> tuple[nn.Module, bool]:
    """The low-bit model of `config`, started from `config.init` where given.

    Returns the model and whether its quantizers still have to be calibrated on data: not so when `config.init` brought
    their state along.
    """
    model = build_float_model(config, data)
    if config.init is None:
        return to_low_bit(model, config), True
    state = read_weights(config.init)
    _start_from(model, state, config.init)
    model = to_low_bit(model, config)
    return model, not _load_rest(model, state, config.init)


def _start_from(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    problems = [f"missing {name}" for name in own if name not in state] + shape_problems(own, state)
    if problems:
        raise CheckpointError(f"--init '{path}' does not fit this model: {shortened(problems)}")
    model.load_state_dict({name: value for name, value in state.items() if name in own})


def _load_rest(model: nn.Module, state: dict[str, Tensor], path: Path) -> bool:
    """Load what only the converted model has (quantizer state); whether `state` holds all of that."""
    own = model.state_dict()
    problems = [f"unexpected {name}" for name in state if name not in own] + shape_problems(own, state)
    if problems:
        raise CheckpointError(f"--init '{path}' does not fit this model: {shortened(problems)}")
    model.load_state_dict(state, strict=False)
    return own.keys() == state.keys()


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
