"""Reads a pickle that holds arrays and plain values only, and runs none of its code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from lowbit._errors import DataError

_RECONSTRUCT = np.zeros(0).__reduce__()[0]  # the function NumPy names in its pickles; it moved modules in NumPy 2


def _encode(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes for Python 2; the general codec registry is not for a stranger's file to call.
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ADMITTED[module, name]


def load_plain(path: Path) -> Any:
    """The object in a pickle file, made of NumPy arrays, dicts, lists, tuples, numbers, text and bytes alone.

    Raises: DataError when the file is truncated, is no pickle, or asks for anything else to be imported.
    """
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:  # damaged pickles raise nearly anything
        raise DataError(
            f"'{path}' cannot be read ({error or type(error).__name__}); expected a pickle of arrays and plain values "
            "as the data set is published: it may be truncated or not the original, download it again"
        ) from error
