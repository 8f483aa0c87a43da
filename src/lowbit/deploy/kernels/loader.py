"""The compiled kernels, where they could be built."""

from __future__ import annotations

import importlib
import logging
from functools import cache
from types import ModuleType

_log = logging.getLogger("lowbit")


@cache
def kernels() -> ModuleType | None:
    """The extension module, or None, with one notice, where lowbit was installed without a compiler."""
    try:
        return importlib.import_module("lowbit._kernels")
    except ImportError as error:
        _log.warning(
            "lowbit was installed without its compiled kernels (%s): low-bit layers run on PyTorch, with the same "
            "results but no faster than float; install a C++17 compiler (g++ or clang) and reinstall lowbit",
            error,
        )
        return None


def paths() -> list[str]:
    """Every way of computing that a program can be told to take here; "amxmodel" runs AMX's path on a model of it."""
    module = kernels()
    return [] if module is None else list(module.paths())


def instruction_sets() -> list[str]:
    """The instruction sets the kernels can use on this processor, the fastest first; none without kernels."""
    module = kernels()
    return [] if module is None else list(module.instruction_sets())
