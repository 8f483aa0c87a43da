"""lowbit: train neural networks whose weights and activations are a few bits wide.

>>> import lowbit
>>> print(lowbit.plan(my_model, weights=1, activations=2))       # what becomes of each layer, and why
>>> model = lowbit.convert(my_model, weights=1, activations=2)   # any eager nn.Module; train it as before
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowbit._errors import (
        ArtefactError,
        CheckpointError,
        ConfigError,
        DataError,
        DivergedError,
        ExportError,
        LowbitError,
        UnknownNameError,
    )
    from lowbit.deploy.export import export
    from lowbit.deploy.files.artefact import load
    from lowbit.deploy.kernels.compiled import compile
    from lowbit.deploy.proof.verify import verify
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
    from lowbit.training import TrainConfig, evaluate, train

__version__ = "0.1.0"

__all__ = [
    "ArtefactError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "ExportError",
    "FakeQuantize",
    "LowbitError",
    "TrainConfig",
    "UnknownNameError",
    "calibrate",
    "compile",
    "convert",
    "evaluate",
    "export",
    "latent_parameters",
    "load",
    "plan",
    "scale_parameters",
    "set_progress",
    "summary",
    "train",
    "verify",
]

_HOME = {
    **dict.fromkeys(("compile", "export", "load", "verify"), "lowbit.deploy"),
    **dict.fromkeys(("TrainConfig", "evaluate", "train"), "lowbit.training"),
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "lowbit._errors"),
}


def __getattr__(name: str) -> Any:
    # Nothing is loaded before it is asked for: `lowbit --help` need not wait for torch, and the command line can set
    # how torch's threads wait before torch starts them.
    if name not in __all__:
        raise AttributeError(f"module 'lowbit' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME.get(name, "lowbit.layers")), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
