"""Errors that lowbit raises on purpose, all in the user's words.

Everything derives from `LowbitError`, so a caller can catch the family; the command line prints the message alone,
without a traceback. A message says what was given, what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LowbitError(ValueError):
    """Base of every error lowbit raises on purpose."""


class UnknownNameError(LowbitError):
    """A name that no registry, option or field knows."""


class ConfigError(LowbitError):
    """A configuration value of the wrong type, out of range, or in conflict with another."""


class DataError(LowbitError):
    """A data file that is missing, truncated or not what it claims to be."""


class CheckpointError(LowbitError):
    """A run folder or checkpoint that cannot be used as asked."""


class ArtefactError(LowbitError):
    """An exported file that is damaged, does not fit the model, or does not compute what the model computes."""


class ExportError(LowbitError):
    """A model that cannot be exported as asked, or whose exported file does not compute what the model computes."""


class DivergedError(LowbitError):
    """Training stopped because the loss became NaN, infinite or ran away."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A ready-made hint: `"did you mean 'x'? "` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'? " if close else ""
