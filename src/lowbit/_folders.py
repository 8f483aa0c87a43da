"""Folders for what a command writes: never one that is in use."""

from __future__ import annotations

import time
from pathlib import Path

from lowbit._errors import ConfigError


def new_folder(out: Path | None, name: str) -> Path:
    """Make the folder `out`, or a new one under runs/ with `name` and the moment in its name.

    Raises: ConfigError when `out` holds something or a folder cannot be made.
    """
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            if any(out.iterdir()):
                raise ConfigError(f"folder '{out}' exists and is not empty; choose another --out")
            return out
        base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        for attempt in range(1, 1000):
            folder = base if attempt == 1 else base.with_name(f"{base.name}-{attempt}")
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:  # another run of the same second
                continue
    except OSError as error:
        raise ConfigError(f"cannot make the folder for the results: {error}; choose another --out") from None
    raise ConfigError(f"'{base}' and a thousand like it exist; choose another --out")
