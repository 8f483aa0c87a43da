"""Training: one configuration, one loop, one run folder.

`train(TrainConfig(...))` trains, `evaluate(run)` looks at the result. Both are loaded on first use, so that the command
line can describe and check a configuration without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowbit.training.config import TrainConfig, load_config, resumed_config

if TYPE_CHECKING:
    from lowbit.training.evaluation import EvalResult, evaluate
    from lowbit.training.loop import train
    from lowbit.training.result import TrainResult

__all__ = ["EvalResult", "TrainConfig", "TrainResult", "evaluate", "load_config", "resumed_config", "train"]

_LAZY = {
    "EvalResult": "evaluation",
    "evaluate": "evaluation",
    "train": "loop",
    "TrainResult": "result",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'lowbit.training' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"lowbit.training.{_LAZY[name]}"), name)
