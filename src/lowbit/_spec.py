"""Spec strings: `"ewgs"`, `"ewgs(delta=0.01)"`, `"mypackage.nets:small(width=8)"`.

One spelling for "this member, with these options", the same on the command line, in YAML and in Python. The options are
Python literals; a bare word is a string, and may hold dashes, dots, colons and slashes (`mean-abs`, `group:64`).
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lowbit._errors import ConfigError, UnknownNameError, nearest

T = TypeVar("T")


# A quoted text, to be left alone, or a bare word after an equals sign: mean-abs, group:64, mypackage.nets:small.
_BARE_WORD = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?<==)\s*([^\W\d][\w.:/-]*)\s*(?=[,)])""")


def _quoted(match: re.Match[str]) -> str:
    word = match[2]
    return match[0] if word is None or word in ("True", "False", "None") else repr(word)


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Split a spec into its name and its options.

    Raises: ConfigError when the spec is not `name` or `name(key=value, ...)`.
    """
    name, bracket, rest = spec.strip().partition("(")
    name = name.strip()
    if not bracket:
        return name, {}
    expected = f"'{spec}' is not of the form name(key=value, ...), for example ewgs(delta=0.01)"
    source = f"f({_BARE_WORD.sub(_quoted, rest)}"
    try:
        call = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError):  # a null byte is a ValueError to older interpreters
        raise ConfigError(expected) from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args or not name:
        raise ConfigError(expected)
    options: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ConfigError(expected)
        if keyword.arg in options:
            raise ConfigError(f"option '{keyword.arg}' of '{spec}' is given twice")
        if isinstance(keyword.value, ast.Call):  # a spec within the spec stays text
            options[keyword.arg] = ast.get_source_segment(source, keyword.value)
            continue
        try:
            options[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError):
            raise ConfigError(
                f"option '{keyword.arg}' of '{spec}' is not a plain value (number, text, tuple)"
            ) from None
    return name, options


def accepted(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """The keyword names `function` takes, and whether it takes any (`**kwargs`)."""
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def call(
    label: str, function: Callable[..., T], options: Mapping[str, Any], context: Mapping[str, Any] | None = None
) -> T:
    """Call `function` with the user's `options` and as much of `context` as its signature accepts.

    What `context` decides is not for the user to set.

    Raises:
        UnknownNameError: for an option that `function` does not take.
        ConfigError: for an option of the wrong type, or one that `function` needs and nobody gave.
    """
    names, open_ended = accepted(function)
    own = names - set(context or {})
    for key in options:
        if key in (context or {}):
            raise ConfigError(f"{label}: '{key}' is no option, it follows from the rest of the configuration")
        if key not in own and not open_ended:
            known = ", ".join(sorted(own)) or "none"
            raise UnknownNameError(f"{label} has no option '{key}': {nearest(key, own)}it takes: {known}")
    offered = {k: v for k, v in (context or {}).items() if k in names or open_ended}
    arguments = {**offered, **options}
    _check_types(label, function, options)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{label}: {error}") from None
    return function(**arguments)


# Annotations are text where a module postpones their evaluation. Others (unions, classes) check themselves.
_PLAIN: dict[Any, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
_PLAIN.update({int: (int,), float: (int, float), bool: (bool,), str: (str,)})


def _check_types(label: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    for key, parameter in inspect.signature(function).parameters.items():
        plain = _PLAIN.get(parameter.annotation)
        if plain is None or key not in options:
            continue
        value = options[key]
        # True is an int to Python, but never a number to the user.
        if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
            wanted = " (True or False)" if bool in plain else ""
            raise ConfigError(f"{label}: option '{key}' takes a {plain[-1].__name__}{wanted}; {value!r} was given")
