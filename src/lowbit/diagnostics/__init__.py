"""Diagnostics: what happens in the low-bit layers while a network trains, cheap enough to leave on."""

from lowbit.diagnostics.mismatch import gradient_mismatch
from lowbit.diagnostics.monitor import LayerFigures, WeightMonitor
from lowbit.diagnostics.safety import check

__all__ = ["LayerFigures", "WeightMonitor", "check", "gradient_mismatch"]
