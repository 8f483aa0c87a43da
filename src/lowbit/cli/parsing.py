"""From arguments to options, and from results to what is printed."""

from __future__ import annotations

import json
import os
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from lowbit.cli.options import TrainCommand
from lowbit.training.config import TrainConfig, check_option

T = TypeVar("T")


def parse(command: type[T], name: str, arguments: list[str], default: Any = None) -> T:
    """Read the options of one command; a mistake ends the process with status 2 and a message that names the option."""
    _check_values(command, arguments)
    import tyro  # a tenth of a second, which `lowbit --help` need not wait for

    settings = (tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs)
    given = {} if default is None else {"default": default}
    return cast(T, tyro.cli(command, prog=f"lowbit {name}", args=arguments, config=settings, **given))


def _check_values(command: type, arguments: list[str]) -> None:
    """Check choices and numbers before tyro does, which words its errors for those who know Python's types.

    Raises: ConfigError that names the option.
    """
    hints = get_type_hints(command)
    if command is TrainCommand:
        hints |= get_type_hints(TrainConfig)
    option, hint = "", None
    for argument in arguments:
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
            hint = hints.get(option[2:].replace("-", "_"))
            if equals:
                check_option(option, value, hint)
                hint = None
        else:
            check_option(option, argument, hint)
            if tuple not in (get_origin(hint), *map(get_origin, get_args(hint))):  # an option with a single value
                hint = None


def value_of(option: str, arguments: list[str]) -> str | None:
    """The value given to `option`, which has to be known before the other options can be read."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option and position + 1 < len(arguments):
            return arguments[position + 1]
    return None


def console(*, error: bool) -> Any:
    """Where tables go: standard error or standard output."""
    from rich.console import Console

    return Console(stderr=error, highlight=False)


def print_json(values: dict[str, Any]) -> None:
    """One object on one line of standard output, from one process."""
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(values), flush=True)
