"""Name → object, with duplicates refused, near misses suggested and options read from a spec string."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from lowbit._errors import LowbitError, UnknownNameError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """The named members of one family (estimators, quantizers, models, data sources, methods)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._members: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files an object under `name`. Raises: LowbitError when the name is taken."""

        def add(member: T) -> T:
            if name in self._members:
                raise LowbitError(f"{self.kind} '{name}' is registered twice; choose another name")
            self._members[name] = member
            return member

        return add

    def get(self, name: str) -> T:
        """The member called `name`. Raises: UnknownNameError with the nearest valid name."""
        if name not in self._members:
            known = ", ".join(self.names())
            raise UnknownNameError(f"unknown {self.kind} '{name}': {nearest(name, self._members)}known: {known}")
        return self._members[name]

    def name_of(self, member: T, default: str) -> str:
        """The name `member` was registered under; `default` for an object of the user's own that never was."""
        return next((name for name, known in self._members.items() if known is member), default)

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._members))

    def items(self) -> Iterator[tuple[str, T]]:
        return ((name, self._members[name]) for name in self.names())


def discover(package: str, path: list[str]) -> None:
    """Import every public module of a package, so that its members register themselves."""
    for module in pkgutil.iter_modules(path):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package}.{module.name}")
