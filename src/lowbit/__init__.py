"""lowbit: train neural networks whose weights and activations are a few bits wide.

>>> import lowbit
>>> model = lowbit.convert(model, weights=1, activations=2)      # any eager nn.Module
>>> print(lowbit.plan(model_in_float, weights=1, activations=2))  # what becomes of each layer, and why
"""

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

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "FakeQuantize",
    "LowbitError",
    "UnknownNameError",
    "calibrate",
    "convert",
    "latent_parameters",
    "plan",
    "scale_parameters",
    "set_progress",
    "summary",
]
