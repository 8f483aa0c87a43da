"""Quantizers: which discrete number does x become?

One file per quantizer; adding a file adds a name. `build_quantizer("lsq(granularity=channel)", bits=2)` makes one.
"""

from lowbit._registry import discover
from lowbit.quantizers._base import QUANTIZERS, AbstractQuantizer, build_quantizer
from lowbit.quantizers.granularity import Granularity, PerChannel, PerGroup, PerTensor
from lowbit.quantizers.grid import Grid

discover(__name__, list(__path__))

__all__ = [
    "QUANTIZERS",
    "AbstractQuantizer",
    "Granularity",
    "Grid",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "build_quantizer",
]
