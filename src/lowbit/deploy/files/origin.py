"""Where an exported model comes from: what it takes to use a file without the run that it was made in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowbit._errors import ArtefactError, ConfigError
from lowbit._spec import parse
from lowbit.deploy.files import container
from lowbit.models import build_model

KEY = "lowbit_origin"
"""Under which an ONNX file holds it, in its metadata."""


@dataclass(frozen=True)
class Origin:
    """The architecture of an exported model, and what its inputs are.

    Args:
        model: the float model's spec, as `lowbit.models.build_model` takes it.
        classes: their names, in the order of the model's outputs.
        in_channels: of an image.
        image_size: (height, width) of an image, in pixels.
        mean, std: per channel: a pixel of brightness x in [0, 1] enters the model as (x − mean) / std.
        data: the spec of the data source.
        checkpoint: of the run, "best" or "last"; empty if unknown.
        epoch: how many epochs it was trained for.

    Raises: ConfigError for values that cannot be.
    """

    model: str
    classes: tuple[str, ...]
    in_channels: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str = ""
    checkpoint: str = ""
    epoch: int = 0

    def __post_init__(self) -> None:
        for name in ("model", "data", "checkpoint"):
            self._check(name, isinstance(getattr(self, name), str), "a text")
        self._check("classes", bool(self.classes) and _all(self.classes, str), "the names of the classes")
        self._check("in_channels", _is_count(self.in_channels, 1), "a whole number from 1")
        sides = _all(self.image_size, int) and len(self.image_size) == 2
        self._check("image_size", sides and all(_is_count(n, 1) for n in self.image_size), "(height, width)")
        for name in ("mean", "std"):
            values = getattr(self, name)
            numbers = _all(values, int, float) and len(values) == self.in_channels
            self._check(name, numbers and all(map(math.isfinite, values)), "one number per channel")
        self._check("std", min(self.std) > 0, "positive numbers")
        self._check("epoch", _is_count(self.epoch, 0), "a whole number from 0")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"the origin's {name} is {getattr(self, name)!r}, expected {expected}")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Origin:
        """The origin that `to_json` made plain. Raises: ArtefactError."""
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            raise ArtefactError("its origin is damaged: it has other entries than lowbit writes")
        try:
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**given)
        except ConfigError as error:
            raise ArtefactError(f"its origin is damaged: {error}") from None

    def build(self, path: Path, model: str | None = None) -> nn.Module:
        """The float model, with parameters drawn anew, in evaluation.

        Args:
            path: of the file, for the messages.
            model: take this spec instead; needed for a function of the user's own, which is not imported because a
                file says so.

        Raises: ConfigError, UnknownNameError.
        """
        if model is None and ":" in parse(self.model)[0]:
            raise ConfigError(
                f"'{path}' is of the model '{self.model}', a function that is not part of lowbit, and lowbit runs no "
                f"code because a file says so: if you trust it, say so with --model '{self.model}'"
            )
        built = build_model(model or self.model, len(self.classes), self.in_channels, self.image_size, seed=0).eval()
        if any(nn.parameter.is_lazy(tensor) for tensor in (*built.parameters(), *built.buffers())):
            with torch.no_grad():
                built(torch.zeros(1, self.in_channels, *self.image_size))
        return built


def read_origin(path: Path) -> Origin | None:
    """The origin that a `.lowbit`, `.onnx` or `.qonnx` file holds; None for a file that was written without.

    Raises: ArtefactError for a file that is missing, damaged or of another kind; ConfigError where onnx is needed to
    read it and not installed.
    """
    if path.is_dir():
        raise ArtefactError(f"'{path}' is a folder: give a file that 'lowbit export' wrote")
    if path.suffix == ".lowbit":
        values = container.read(path)[0].get("origin")
    elif path.suffix in (".onnx", ".qonnx"):
        values = _onnx_origin(path)
    else:
        raise ArtefactError(f"'{path}' is no exported file: those end in .lowbit, .onnx or .qonnx")
    if values is None:
        return None
    try:
        return Origin.from_json(values)
    except ArtefactError as error:
        raise ArtefactError(f"'{path}': {error}") from None


def require_origin(path: Path) -> Origin:
    """As `read_origin`. Raises: also ArtefactError for a file that was written without."""
    origin = read_origin(path)
    if origin is None:
        raise ArtefactError(
            f"'{path}' does not say what its model was made of: it was exported from Python. Export the run with "
            "'lowbit export', or give lowbit.export(…, origin=…)"
        )
    return origin


def _onnx_origin(path: Path) -> Any:
    try:
        from lowbit.deploy.onnx.runner import load_file
    except ImportError as error:
        raise ConfigError(
            f"'{path.name}' cannot be read here ({error}): install what reads ONNX with pip install 'lowbit[onnx]'"
        ) from None
    model, _ = load_file(path)
    for entry in model.metadata_props:
        if entry.key == KEY:
            try:
                return json.loads(entry.value)
            except (ValueError, RecursionError):
                raise ArtefactError(f"'{path}' is damaged: its origin is not JSON; export it again") from None
    return None


def _all(values: Any, *kinds: type) -> bool:
    return isinstance(values, tuple) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
