"""Finding the files of a data set, and saying in the user's words which one is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lowbit._errors import DataError


def require_folder(path: Path | None, source: str, contents: str) -> Path:
    """`path`, if it is a folder.

    Args:
        path: what the user gave.
        source: the data source's name, for the message.
        contents: what the folder should hold, for the message.

    Raises: DataError when there is no path, or it is not a folder.
    """
    advice = f"expected a folder with {contents}; name it with --data-path"
    if path is None:
        raise DataError(f"data source '{source}' needs files, and no path was given: {advice}")
    if not path.exists():
        raise DataError(f"data source '{source}': '{path}' does not exist: {advice}")
    if not path.is_dir():
        raise DataError(f"data source '{source}': '{path}' is a file: {advice}")
    return path


def find(folder: Path, subfolders: Iterable[str], names: Sequence[str]) -> Path | None:
    """The first of `names` that exists as a file in `folder`, or else in one of `subfolders`."""
    for place in (folder, *(folder / subfolder for subfolder in subfolders)):
        for name in names:
            if (place / name).is_file():
                return place / name
    return None


def listing(folder: Path) -> str:
    """The first few names in `folder`, for a message."""
    names = sorted(child.name + ("/" if child.is_dir() else "") for child in folder.iterdir())
    if not names:
        return "the folder is empty"
    return f"the folder has {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
