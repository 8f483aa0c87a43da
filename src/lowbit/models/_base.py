"""What every model file shares: the registry and the checks of the options."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from lowbit._errors import ConfigError
from lowbit._registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry("model")
"""Factories `f(num_classes, in_channels, image_size, **options) -> nn.Module`, by name."""


def check_counts(model: str, **counts: object) -> None:
    """Check that each named size is a whole number of at least 1.

    Raises: ConfigError naming the model, the option and the value.
    """
    for name, value in counts.items():
        if not _is_count(value):
            raise ConfigError(f"{model}: {name} is {value!r}; give a whole number of at least 1")


def check_widths(model: str, name: str, widths: Sequence[int], length: int | None = None) -> tuple[int, ...]:
    """The widths as a tuple, checked: `length` of them (None: one or more), each a whole number of at least 1.

    Raises: ConfigError naming the model, the option and the value.
    """
    listed = isinstance(widths, (tuple, list))
    if not listed or not all(map(_is_count, widths)) or len(widths) != (length or max(len(widths), 1)):
        wanted = f"{length} whole numbers" if length else "one or more whole numbers"
        example = (64,) * (length or 1)
        raise ConfigError(f"{model}: {name} is {widths!r}; give {wanted} of at least 1 in brackets, such as {example}")
    return tuple(widths)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
