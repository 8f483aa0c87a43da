"""Decoded images on disk, so that a data set of compressed images is decoded once and not once per run.

An entry is a `.npy` file named after a hash of the compressed images, so it can never be stale. The folder is
`$LOWBIT_CACHE`, or else `lowbit` in `$XDG_CACHE_HOME` or `~/.cache`; `LOWBIT_CACHE=off` keeps nothing. Any entry may be
deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt


def folder() -> Path | None:
    """Where entries are kept; None where the user wants none."""
    chosen = os.environ.get("LOWBIT_CACHE", "")
    if chosen.lower() in ("off", "0", "none"):
        return None
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "lowbit"


def key(encoded: Iterable[bytes | Path], *options: object) -> str:
    """A name for the result of decoding `encoded` with `options`. A path counts by name, size and time of change."""
    digest = hashlib.blake2b(repr(options).encode(), digest_size=16)
    for item in encoded:
        if isinstance(item, bytes):
            digest.update(len(item).to_bytes(8, "little"))
            digest.update(item)
        else:
            status = item.stat()
            digest.update(f"{item.resolve()}|{status.st_size}|{status.st_mtime_ns}".encode())
    return digest.hexdigest()


def load(name: str) -> npt.NDArray[np.uint8] | None:
    """The entry called `name`; None when there is none, or it is damaged."""
    place = folder()
    if place is None:
        return None
    try:
        entry = np.load(place / f"{name}.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return entry if isinstance(entry, np.ndarray) and entry.dtype == np.uint8 else None


def save(name: str, images: npt.NDArray[np.uint8]) -> None:
    """Keep an entry. A folder that cannot be written to is no error: the cache only saves time."""
    place = folder()
    if place is None:
        return
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        # Several ranks may write the same entry: each writes its own file, and renaming replaces in one step.
        handle, temporary = tempfile.mkstemp(dir=place, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, images)
            os.replace(temporary, place / f"{name}.npy")
        except OSError:
            os.unlink(temporary)
