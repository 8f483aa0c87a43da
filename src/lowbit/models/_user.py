"""A model of the user's own, named `package.module:function`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lowbit._errors import ConfigError
from lowbit._spec import call
from lowbit._user import user_function, working_directory_importable


def build_user_model(name: str, options: Mapping[str, Any], context: Mapping[str, Any]) -> nn.Module:
    """Import `module:function` and call it with `options` and as much of `context` as it accepts.

    The current working directory can be imported from meanwhile, as under `python -m`.

    Raises: UnknownNameError for a module, a function or an option that does not exist; ConfigError when the module
    fails to import, an option without a default is missing, or the result is not an `nn.Module`.
    """
    with working_directory_importable():
        function = user_function("model", name)
        _check_complete(name, function, {**context, **options})
        model = call(f"model '{name}'", function, options, context)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model '{name}' returned a value of type {type(model).__name__}; it must return a torch.nn.Module"
        )
    return model


def _check_complete(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError as error:
        raise ConfigError(f"model '{name}' has no signature to read; wrap it in a function of your own") from error
    for parameter in parameters:
        optional = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if not optional and parameter.default is parameter.empty and parameter.name not in given:
            example = f"{name}({parameter.name}=...)"
            raise ConfigError(
                f"model '{name}' needs the option '{parameter.name}'; write {example}, or give it a default"
            )
