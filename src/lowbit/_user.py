"""Functions of the user's own, named `package.module:function`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from lowbit._errors import ConfigError, UnknownNameError, nearest


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Meanwhile the working directory can be imported from, as under `python -m`."""
    # A console script starts with its own folder on the path, not with the folder it was called from.
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def user_function(kind: str, name: str) -> Callable[..., Any]:
    """The function or class that `name`, `package.module:function`, stands for.

    Args:
        kind: what the function is for ("model", "data source"), for the messages.
        name: module and function, with a colon between them.

    Raises: UnknownNameError when there is no such module or function; ConfigError when the name is of another form, the
    module fails to import, or what it names cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{kind} '{name}' is not of the form package.module:function")
    module = _import(module_name)
    try:
        found = getattr(module, attribute)
    except AttributeError as error:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = nearest(attribute, public)
        raise UnknownNameError(
            f"module '{module_name}' has no '{attribute}': {hint}check the part after the colon"
        ) from error
    if not callable(found):
        raise ConfigError(f"{kind} '{name}' is of type {type(found).__name__}; name a function or a class")
    function: Callable[..., Any] = found
    return function


def _import(module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"module '{module_name}' needs '{error.name}', which is not installed") from error
        raise UnknownNameError(
            f"no module '{module_name}': it is neither in {os.getcwd()} nor installed; check the part before the colon"
        ) from error
    except Exception as error:  # the file is the user's: whatever it raises while it loads is the message
        raise ConfigError(f"module '{module_name}' does not import: {type(error).__name__}: {error}") from error
