"""What a model's modules are, in plain values: kinds, geometry, and quantizers as specs that build them again."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lowbit import _spec
from lowbit._errors import ArtefactError, LowbitError
from lowbit.deploy.files.fixed import FixedCodes
from lowbit.layers import (
    ExactBatchNorm1d,
    ExactBatchNorm2d,
    ExactBatchNorm3d,
    FakeQuantize,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose2d,
    QuantLinear,
    QuantReLU,
    plain_name,
)
from lowbit.quantizers import QUANTIZERS, AbstractQuantizer, Granularity, PerChannel, PerGroup

_CONV = ("stride", "padding", "dilation", "groups", "padding_mode", "output_padding")
_RNN = ("num_layers", "bidirectional", "batch_first")

# From the special to the general: the first kind that a module is an instance of is its own.
_KINDS: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys((QuantConv1d, QuantConv2d, QuantConv3d, QuantConvTranspose2d), _CONV),
    **dict.fromkeys((ExactBatchNorm1d, ExactBatchNorm2d, ExactBatchNorm3d), ("eps",)),
    **dict.fromkeys((QuantLinear, QuantReLU), ()),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _CONV),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _CONV),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm), ("eps",)),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), ("eps",)),
    nn.GroupNorm: ("num_groups", "eps"),
    nn.MultiheadAttention: ("num_heads", "batch_first"),
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), _RNN),
    nn.Linear: (),
}
_USUAL: dict[str, Any] = {
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "padding_mode": "zeros",
    "output_padding": 0,
    "eps": 1e-5,
}
LOW_BIT = frozenset(
    kind.__name__ for kind in (QuantConv1d, QuantConv2d, QuantConv3d, QuantConvTranspose2d, QuantLinear, QuantReLU)
)
"""The kinds whose quantizers are described."""

_CONTEXT = ("shape", "batched")  # what a quantizer is told by where it stands
_TRAINING = ("detach",)  # what changes gradients only
_LONGEST_SPEC = 500
_BARE = re.compile(r"[^\W\d][\w.:/-]*")


@dataclass(frozen=True)
class Quantizer:
    """A quantizer in plain values.

    Args:
        spec: its registered name and options, such as "lsq(bits=4, granularity=channel, axis=0)".
        grid: low, high and step of its codes.
    """

    spec: str
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class Module:
    """A module in plain values.

    Args:
        kind: the name of its class, or of the class of torch that it derives from.
        geometry: the attributes that decide what it computes, beside the shapes of its tensors; not the usual ones.
        shape, dtype: of the weight, where it is stored as codes.
        weight, input: the quantizers, where there are any.
    """

    kind: str
    geometry: Mapping[str, Any]
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    weight: Quantizer | None = None
    input: Quantizer | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without what is empty."""
        values: dict[str, Any] = {"kind": self.kind, "geometry": dict(self.geometry), "dtype": self.dtype}
        values["shape"] = None if self.shape is None else list(self.shape)
        for key, quantizer in (("weight", self.weight), ("input", self.input)):
            values[key] = None if quantizer is None else {"quantizer": quantizer.spec, "grid": list(quantizer.grid)}
        return {key: value for key, value in values.items() if value not in (None, {})}


def describe(model: nn.Module) -> dict[str, Module]:
    """Every module of a known kind by name, each once. Raises: ArtefactError for a quantizer that is not registered."""
    found = {}
    for name, module in model.named_modules():
        name = plain_name(name)
        if kind_of(module) is None:
            continue
        try:
            found[name] = _module(module)
        except ArtefactError as error:
            raise ArtefactError(f"layer '{name}': {error}") from None
    return found


def kind_of(module: nn.Module) -> str | None:
    """The name of the known kind that a module is of, None if of none."""
    return next((kind.__name__ for kind in _KINDS if isinstance(module, kind)), None)


def _module(module: nn.Module) -> Module:
    base = next(kind for kind in _KINDS if isinstance(module, kind))
    attributes = {key: _plain(getattr(module, key)) for key in _KINDS[base]}
    geometry = {key: value for key, value in attributes.items() if key not in _USUAL or value != _USUAL[key]}
    if base.__name__ not in LOW_BIT:
        return Module(base.__name__, geometry)
    input = quantizer_at(module, "input_quantizer")
    weight = None if base is QuantReLU else quantizer_at(module, "weight_quantizer")
    return Module(
        base.__name__,
        geometry,
        None if weight is None else tuple(module.weight.shape),  # type: ignore[arg-type]
        None if weight is None else str(module.weight.dtype).removeprefix("torch."),
        None if weight is None else _quantizer(weight),
        None if input is None else _quantizer(input),
    )


def quantizer_at(module: nn.Module, name: str) -> AbstractQuantizer | None:
    """The quantizer within a layer's FakeQuantize; None where that side stays float."""
    inner = getattr(module, name)
    return inner.quantizer if isinstance(inner, FakeQuantize) else None


def _plain(value: Any) -> Any:
    """A value as JSON gives it back; (1, 1) as 1."""
    if isinstance(value, list | tuple):
        return value[0] if len(set(value)) == 1 else list(value)
    return value


def _quantizer(quantizer: AbstractQuantizer) -> Quantizer:
    grid = quantizer.grid
    return Quantizer(spec_of(quantizer), (grid.low, grid.high, grid.step))


def spec_of(quantizer: AbstractQuantizer) -> str:
    """The spec that builds a quantizer again: its registered name, and every argument but the usual ones.

    Raises: ArtefactError when it is not registered, or does not keep one of its arguments under the argument's name.
    """
    if isinstance(quantizer, FixedCodes):
        return spec_of(quantizer.origin)
    cls = type(quantizer)
    name = QUANTIZERS.name_of(cls, "")
    if not name:
        raise ArtefactError(
            f"its quantizer {cls.__name__} has no name that a file could hold: register it, with "
            "@QUANTIZERS.register('some-name')"
        )
    options = {}
    for key, parameter in inspect.signature(cls).parameters.items():
        # The staircase takes its resolution as an option only where nothing else determines it.
        learned = key == "resolution" and quantizer.scaling.policy != "fixed"
        if key in _CONTEXT or key in _TRAINING or learned:
            continue
        value = _argument(quantizer, key, parameter.default)
        if key == "bits" or value != parameter.default:
            options[key] = value
    inside = ", ".join(f"{key}={_spelled(value)}" for key, value in options.items())
    return f"{name}({inside})" if inside else name


def _argument(quantizer: AbstractQuantizer, key: str, usual: Any) -> Any:
    if key == "scale":
        return quantizer.scaling.policy
    if key in ("granularity", "axis"):
        text, axis = _granularity(quantizer.granularity)
        return text if key == "granularity" else usual if axis is None else axis
    if key not in vars(quantizer):
        raise ArtefactError(
            f"its quantizer {type(quantizer).__name__} does not keep its argument '{key}' as an attribute"
        )
    return vars(quantizer)[key]


def _granularity(granularity: Granularity) -> tuple[str, int | None]:
    if isinstance(granularity, PerGroup):
        return f"group:{granularity.size}", granularity.axis
    if isinstance(granularity, PerChannel):
        return "channel", granularity.axis
    return "tensor", None


def _spelled(value: Any) -> str:
    bare = isinstance(value, str) and _BARE.fullmatch(value) and value not in ("True", "False", "None")
    return value if bare else repr(value)


def build(described: Quantizer, shape: tuple[int, ...] | None) -> AbstractQuantizer:
    """The quantizer that was described.

    Args:
        described: a quantizer in plain values, from a file that may be wrong in any way.
        shape: of the weight; None for an activation's quantizer.

    Raises: ArtefactError.
    """
    spec = described.spec
    if len(spec) > _LONGEST_SPEC:
        raise ArtefactError(f"a quantizer's description has {len(spec)} characters: the header is damaged")
    try:
        name, options = _spec.parse(spec)
        cls: Callable[..., AbstractQuantizer] = QUANTIZERS.get(name)
        if "bits" in options and options["bits"] not in QUANTIZERS.get(name).widths:
            raise ArtefactError(f"quantizer '{spec}' has a width that '{name}' does not offer")
        built = _spec.call(f"quantizer '{name}'", cls, options, {"shape": shape, "batched": shape is None})
        if isinstance(built.granularity, PerChannel | PerGroup) and shape is not None:
            built.granularity.scale_shape(shape)
        faithful = spec_of(built) == spec
    except ArtefactError:
        raise
    except LowbitError as error:
        raise ArtefactError(f"quantizer '{spec}' cannot be built: {error}") from None
    except Exception as error:  # options that somebody edited may make a constructor raise anything
        raise ArtefactError(f"quantizer '{spec}' cannot be built ({error}): the header is damaged") from None
    if not faithful:
        raise ArtefactError(f"quantizer '{spec}' is not described as lowbit does it: the header is damaged")
    grid = (built.grid.low, built.grid.high, built.grid.step)
    if grid != described.grid:
        raise ArtefactError(
            f"quantizer '{spec}' has the codes {_codes(grid)} here, but {_codes(described.grid)} in the file: it was "
            "written with another version of that quantizer"
        )
    return built


def _codes(grid: tuple[int, int, int]) -> str:
    low, high, step = grid
    return f"{low} to {high}" + (f" in steps of {step}" if step != 1 else "")


def agree(first: Quantizer | None, second: Quantizer | None) -> bool:
    """Whether two descriptions mean the same; numbers such as a fitted resolution may differ in their last bits."""
    if first is None or second is None:
        return first is second
    (name, options), (other_name, others) = _spec.parse(first.spec), _spec.parse(second.spec)
    same = name == other_name and options.keys() == others.keys() and first.grid == second.grid
    return same and all(_same(value, others[key]) for key, value in options.items())


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) <= 1e-9 * abs(first)  # computed by another machine's exp and erfc
    return bool(first == second)


def from_json(values: Any) -> Module:
    """The opposite of `Module.to_json`. Raises: ArtefactError for anything that `to_json` would not give."""
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        raise ArtefactError("the header is damaged: a layer is not described")
    known = {"kind", "geometry", "shape", "dtype", "weight", "input"}
    geometry, shape, dtype = values.get("geometry", {}), values.get("shape"), values.get("dtype")
    sound = values.keys() <= known and isinstance(geometry, dict) and isinstance(dtype, str | None)
    if not sound or not (shape is None or _whole_numbers(shape, 0)):
        raise ArtefactError("the header is damaged: the description of a layer has values of the wrong kind")
    weight, input = _quantizer_from_json(values.get("weight")), _quantizer_from_json(values.get("input"))
    if (weight is None) != (shape is None) or (weight is None) != (dtype is None):
        raise ArtefactError("the header is damaged: a layer's weight is described by half")
    kind = values["kind"]
    has_none = weight is None and input is None
    if (kind not in LOW_BIT and not has_none) or (kind == QuantReLU.__name__ and (weight or not input)):
        raise ArtefactError(f"the header is damaged: a {kind} has other quantizers than such a layer can have")
    return Module(kind, geometry, None if shape is None else tuple(shape), dtype, weight, input)


def _quantizer_from_json(values: Any) -> Quantizer | None:
    if values is None:
        return None
    sound = isinstance(values, dict) and values.keys() == {"quantizer", "grid"} and isinstance(values["quantizer"], str)
    if not sound or not _whole_numbers(values["grid"], -(2**15)) or len(values["grid"]) != 3:
        raise ArtefactError("the header is damaged: a quantizer is not described")
    low, high, step = values["grid"]
    return Quantizer(values["quantizer"], (low, high, step))


def _whole_numbers(values: Any, least: int) -> bool:
    return isinstance(values, list) and all(type(n) is int and least <= n < 2**62 for n in values)
