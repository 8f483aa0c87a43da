"""Methods: which passes a training step needs, and how the weights move.

>>> method = build_method("plain")
>>> for batch in loader:
...     record = method.step(model, batch, loss_fn, optimizer)
"""

from lowbit._registry import discover
from lowbit.methods._base import METHODS, AbstractMethod, StepRecord, build_method

discover(__name__, list(__path__))

__all__ = ["METHODS", "AbstractMethod", "StepRecord", "build_method"]
