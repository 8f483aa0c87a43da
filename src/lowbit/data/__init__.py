"""Images and labels as uint8 tensors, from any of the registered sources, and epochs of batches over them.

A source is a file here with `@DATA.register("name")` over a function `load(path, **options)` that returns `ImageData`,
and a test.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowbit._errors import ConfigError, DataError
from lowbit._registry import discover
from lowbit._spec import accepted, call, parse
from lowbit._user import user_function, working_directory_importable
from lowbit.data._augment import Augmentation
from lowbit.data._batches import Batches
from lowbit.data._core import DATA, ImageData, Normalization, Split, split_validation

__all__ = [
    "DATA",
    "Augmentation",
    "Batches",
    "ImageData",
    "Normalization",
    "Split",
    "load_data",
    "split_validation",
]

discover(__name__, __path__)


def load_data(spec: str, path: Path | None = None) -> ImageData:
    """Load the data set that `spec` names.

    `spec` is a registered source with its options, `"cifar10"` or `"imagefolder(image_size=64)"`, or a function of the
    user's own that returns `ImageData`, `"package.module:function(option=1)"`, found in the working directory or among
    the installed packages; it is given `path` if it takes an argument of that name.

    Args:
        spec: the name, with options.
        path: the folder of the data set's files; None for a source that needs none.

    Raises: UnknownNameError for a source, module, function or option that does not exist; ConfigError for a path that
    the user's function does not take, or a path given twice; DataError when files are missing or not what they should
    be.
    """
    name, options = parse(spec)
    label = f"data source '{name}'"
    if "path" in options:
        if path is not None:
            raise ConfigError(
                f"{label} was given the path '{options['path']}' in its options and '{path}' besides; give one"
            )
        path = Path(str(options.pop("path")))
    if ":" in name:
        # For the user's own function alone: a file of theirs must not stand in for a library that a source imports.
        with working_directory_importable():
            data = _call(label, user_function("data source", name), options, path)
    else:
        data = _call(label, DATA.get(name), options, path)
    if not isinstance(data, ImageData):
        raise DataError(f"{label} returned a {type(data).__name__}; it must return a lowbit.data.ImageData")
    return data


def _call(label: str, function: Callable[..., ImageData], options: dict[str, Any], path: Path | None) -> ImageData:
    names, open_ended = accepted(function)
    if path is not None and "path" not in names and not open_ended:
        raise ConfigError(f"{label} takes no path, but '{path}' was given; omit it, or add an argument 'path'")
    return call(label, function, options, {"path": path})
