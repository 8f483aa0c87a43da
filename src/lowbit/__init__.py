"""lowbit: train neural networks whose weights and activations are a few bits wide.

>>> import lowbit
>>> model = lowbit.convert(model, weights=1, activations=2)      # any eager nn.Module
>>> print(lowbit.plan(model_in_float, weights=1, activations=2))  # what becomes of each layer, and why
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowbit._errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    LowbitError,
    UnknownNameError,
)
from lowbit.layers import (
    FakeQuantize,
    calibrate,
    convert,
    latent_parameters,
    plan,
    scale_parameters,
    set_progress,
    summary,
)
from lowbit.training import TrainConfig

if TYPE_CHECKING:
    from lowbit.training import evaluate, train

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "FakeQuantize",
    "LowbitError",
    "TrainConfig",
    "UnknownNameError",
    "calibrate",
    "convert",
    "evaluate",
    "latent_parameters",
    "plan",
    "scale_parameters",
    "set_progress",
    "summary",
    "train",
]


def __getattr__(name: str) -> Any:
    # Training brings in the launcher and the data readers, a second that `import lowbit` need not take.
    if name not in ("train", "evaluate"):
        raise AttributeError(f"module 'lowbit' has no attribute '{name}'")
    from lowbit import training

    return getattr(training, name)
