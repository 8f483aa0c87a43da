"""Conversion: which layers, which bits. `plan` decides and explains, `convert` acts."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lowbit import _spec
from lowbit._errors import ConfigError, UnknownNameError, nearest
from lowbit.estimators import AbstractEstimator, build_estimator, check_pair
from lowbit.layers.conv import QuantConv1d, QuantConv2d, QuantConv3d, QuantConvTranspose2d
from lowbit.layers.fake_quantize import FakeQuantize
from lowbit.layers.inspect import QUANT_LAYERS
from lowbit.layers.linear import QuantLinear
from lowbit.layers.text import as_text
from lowbit.quantizers import QUANTIZERS, AbstractQuantizer, PerTensor, build_quantizer

_log = logging.getLogger("lowbit")

FLOAT = 32
KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    nn.Linear: QuantLinear,
}


@dataclass(frozen=True)
class LayerOptions:
    """What one layer becomes; the keys an override may set.

    Args:
        weights, activations: bits, 1 to 8; 32 leaves that side in float.
        estimator, quantizer: for the weights; None lets the bits choose (1: sign, 2 to 8: lsq).
        activation_estimator, activation_quantizer: for the layer's input; None: clipped, unsigned.
    """

    weights: int = 1
    activations: int = FLOAT
    estimator: str | AbstractEstimator = "clipped"
    quantizer: str | None = None
    activation_quantizer: str | None = None
    activation_estimator: str | AbstractEstimator | None = None

    def build_weight(self, layer: nn.Module) -> nn.Module:
        """The weight's FakeQuantize, or an identity. Raises: LowbitError."""
        if self.weights == FLOAT:
            return nn.Identity()
        spec = self.quantizer or ("sign" if self.weights == 1 else "lsq")
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        shape = tuple(layer.weight.shape)  # type: ignore[arg-type]
        quantizer = build_quantizer(spec, self.weights, shape=shape, axis=axis, batched=False)
        if not quantizer.signed:
            raise ConfigError(
                f"quantizer '{spec}' is unsigned: as a weight quantizer it would make every negative weight 0"
            )
        spread = isinstance(layer, nn.ConvTranspose2d) and layer.groups > 1
        if spread and quantizer.granularity != PerTensor():
            raise ConfigError(
                "a transposed convolution with groups takes granularity 'tensor': its channels are spread"
            )
        return _pair(quantizer, build_estimator(self.estimator), "weights")

    def build_input(self, name: str, layer: nn.Module) -> nn.Module:
        """The input's FakeQuantize, or an identity. Raises: LowbitError."""
        if self.activations == FLOAT:
            return nn.Identity()
        spec = self.activation_quantizer or "unsigned"
        axis = -1 if isinstance(layer, nn.Linear) else 1
        quantizer = build_quantizer(spec, self.activations, shape=None, axis=axis, batched=True)
        if not quantizer.static:
            raise ConfigError(
                f"quantizer '{spec}' computes its scale from the tensor itself: on activations, the result for one "
                "example would depend on the others of its batch; take a learned scale, as in 'unsigned' or 'lsq'"
            )
        estimator = build_estimator(self.activation_estimator or "clipped")
        return _pair(quantizer, estimator, "activations", f"the input of layer '{name}'")


def _pair(quantizer: AbstractQuantizer, estimator: AbstractEstimator, role: str, name: str = "") -> FakeQuantize:
    check_pair(estimator, quantizer, role)
    return FakeQuantize(quantizer, estimator, name)


@dataclass(frozen=True)
class LayerPlan:
    """One layer of a plan: what happens to it, and why."""

    name: str
    kind: str
    action: Literal["convert", "keep"]
    reason: str
    options: LayerOptions | None


@dataclass(frozen=True)
class ConversionPlan:
    """What `convert` will do to a model: every layer that has weights, in the order of the model's modules."""

    model: nn.Module
    layers: tuple[LayerPlan, ...]

    @property
    def converted(self) -> tuple[LayerPlan, ...]:
        """The layers that change."""
        return tuple(layer for layer in self.layers if layer.action == "convert")

    def render(self) -> Table:
        """The plan as a table."""
        table = Table("layer", "kind", "weights", "activations", "why", title="conversion")
        for layer in self.layers:
            options = layer.options
            weights = "float" if options is None or options.weights == FLOAT else f"{options.weights} bit"
            inputs = "float" if options is None or options.activations == FLOAT else f"{options.activations} bit"
            table.add_row(layer.name, layer.kind, weights, inputs, layer.reason)
        return table

    def __str__(self) -> str:
        return as_text(self.render())

    def describe(self) -> str:
        """The plan in one line."""
        kept = [f"{layer.name} ({layer.reason})" for layer in self.layers if layer.action == "keep"]
        return f"{len(self.converted)} layers converted; kept in float: {', '.join(kept) or 'none'}"

    def apply(self) -> nn.Module:
        """A converted copy of the model; the model itself is left as it was."""
        # A weight that a hook computes (nn.utils.weight_norm) is no leaf, and deepcopy refuses it: copied here instead.
        computed = [t for m in self.model.modules() for t in vars(m).values() if isinstance(t, Tensor)]
        result = copy.deepcopy(self.model, {id(t): t.detach().clone() for t in computed if not t.is_leaf})
        modules = dict(result.named_modules())
        for layer in self.converted:
            assert layer.options is not None
            module = modules[layer.name]
            weight_quantizer = layer.options.build_weight(module)
            input_quantizer = layer.options.build_input(layer.name, module)
            # Changing the class keeps the object: hooks, sharing and references from other modules stay valid.
            module.__class__ = KINDS[type(module)]
            # Its dtype too: a float32 scale per channel would turn a bfloat16 weight into a float32 one.
            module.weight_quantizer = weight_quantizer.to(module.weight)
            module.input_quantizer = input_quantizer.to(module.weight)
            if not module.weight.requires_grad:
                module.weight_quantizer.requires_grad_(False)  # a frozen layer stays as it is
            module.train(module.training)
        for module in modules.values():
            _leave_fast_path(module)
        return result


def plan(
    model: nn.Module,
    weights: int = 1,
    activations: int = FLOAT,
    estimator: str | AbstractEstimator = "clipped",
    quantizer: str | None = None,
    activation_quantizer: str | None = None,
    activation_estimator: str | AbstractEstimator | None = None,
    keep_float: Sequence[str] = ("first", "last"),
    overrides: Mapping[str, Mapping[str, Any] | str] | None = None,
) -> ConversionPlan:
    """Decide what `convert` with the same arguments will do, and say why; the model is not touched.

    Raises: LowbitError, before anything is changed, for every argument that does not fit.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"convert() takes a torch.nn.Module; {type(model).__name__} was given")
    base = LayerOptions(weights, activations, estimator, quantizer, activation_quantizer, activation_estimator)
    _check_options(base)
    found = {name: module for name, module in model.named_modules() if _has_weights(module)}
    reasons = {name: _obstacle(model, name, module) for name, module in found.items()}
    able = [name for name, reason in reasons.items() if not reason]
    kept = _kept(able, keep_float)
    chosen = _overridden(able, base, overrides or {})
    layers = []
    for name, module in found.items():
        options: LayerOptions | None = None
        reason = reasons[name] or (kept.get(name, "") if name not in chosen else "")
        if not reason:
            options = chosen.get(name, base)
            reason = "override" if name in chosen else "default"
            if options is None or (options.weights == FLOAT and options.activations == FLOAT):
                options, reason = None, f"{reason}: float"
        layers.append(LayerPlan(name, type(module).__name__, "convert" if options else "keep", reason, options))
        if options:
            _build_for_check(name, module, options)
    return ConversionPlan(model, tuple(layers))


def convert(
    model: nn.Module,
    weights: int = 1,
    activations: int = FLOAT,
    estimator: str | AbstractEstimator = "clipped",
    quantizer: str | None = None,
    activation_quantizer: str | None = None,
    activation_estimator: str | AbstractEstimator | None = None,
    keep_float: Sequence[str] = ("first", "last"),
    overrides: Mapping[str, Mapping[str, Any] | str] | None = None,
) -> nn.Module:
    """A copy of `model` whose convolutions and linear layers compute with a few bits.

    Parameter names stay, so that a float `state_dict` loads. Converted are `nn.Conv1d/2d/3d` (groups and depthwise
    too), `nn.ConvTranspose2d` and `nn.Linear`, wherever they sit; a module that is shared stays shared. What was
    converted and what was left, and why, goes to the log `lowbit` at level INFO; `plan(...)` with the same arguments
    returns it.

    Args:
        model: any eager module; it is not changed.
        weights: bits of the weights, 1 to 8, or 32 for float.
        activations: bits of each converted layer's input, 1 to 8, or 32 for float.
        estimator: the weights' gradient estimator, a spec such as `"ewgs(delta=0.1)"` or an object.
        quantizer: the weights' quantizer; by default `sign` for 1 bit and `lsq` for 2 to 8.
        activation_quantizer: the inputs' quantizer; by default `unsigned` (for inputs after a ReLU; take `lsq` or
            `sign` for inputs that may be negative).
        activation_estimator: the inputs' estimator; by default `clipped`, whatever the weights use.
        keep_float: layers to leave: "first" and "last" (in the order of `named_modules`) or patterns over layer names.
        overrides: name pattern → options of `LayerOptions`, or "float"; a later match wins over an earlier one, and any
            match wins over `keep_float`.

    Raises:
        ConfigError, UnknownNameError: an argument that does not fit, before anything is changed.

    Example:
        >>> model = convert(resnet20(), weights=1, activations=2, overrides={"layer3.*": {"weights": 2}})
    """
    decided = plan(
        model,
        weights,
        activations,
        estimator,
        quantizer,
        activation_quantizer,
        activation_estimator,
        keep_float,
        overrides,
    )
    if decided.converted or (weights == FLOAT and activations == FLOAT):
        _log.info("%s", decided.describe())
    else:
        _log.warning("nothing was made low-bit: %s; see keep_float", decided.describe())
    return decided.apply()


def _has_weights(module: nn.Module) -> bool:
    """Whether a module multiplies by weights of its own, so that a plan should mention it."""
    known = (
        nn.modules.conv._ConvNd,
        nn.Linear,
        nn.Bilinear,
        nn.Embedding,
        nn.EmbeddingBag,
        nn.RNNBase,
        nn.MultiheadAttention,
    )
    return isinstance(module, known)


def _obstacle(model: nn.Module, name: str, module: nn.Module) -> str:
    """Why a layer cannot be converted, or an empty string."""
    if isinstance(module, QUANT_LAYERS):
        raise ConfigError(f"layer '{name}' is low-bit already: convert() takes the float model")
    parent, _, own = name.rpartition(".")
    if own == "out_proj" and isinstance(model.get_submodule(parent), nn.MultiheadAttention):
        return "nn.MultiheadAttention reads this weight itself"
    if isinstance(module._parameters.get("weight"), nn.parameter.UninitializedParameter):
        return "its shape is not known yet: run the model once"
    if is_parametrized(module, "weight") or (type(module) in KINDS and "weight" not in module._parameters):
        return "its weight is computed (weight_norm or the like)"
    if type(module) not in KINDS:
        return f"{type(module).__name__} is not among the kinds that convert"
    return ""


def _leave_fast_path(module: nn.Module) -> None:
    """Keep torch's transformer encoders from their fused evaluation path, which reads weights past the quantizers."""
    if not any(isinstance(inner, QUANT_LAYERS) for inner in module.modules()):
        return
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0
    if isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False  # the packed sequences it makes for that path have no shape to quantize over


def _kept(able: Sequence[str], keep_float: Sequence[str]) -> dict[str, str]:
    if isinstance(keep_float, str):
        raise ConfigError(f"keep_float takes a list of names; write ('{keep_float}',)")
    if not isinstance(keep_float, Sequence) or not all(isinstance(entry, str) for entry in keep_float):
        raise ConfigError(f"keep_float takes a list of names, () for none; {keep_float!r} was given")
    kept: dict[str, str] = {}
    for entry in keep_float:
        if entry in ("first", "last"):
            matches = able[:1] if entry == "first" else able[-1:]
        else:
            matches = _matches(entry, able, "keep_float")
        for name in matches:
            kept.setdefault(name, f"keep_float: {entry}")
    return kept


def _matches(pattern: str, able: Sequence[str], where: str) -> list[str]:
    matches = [name for name in able if fnmatchcase(name, pattern)]
    if not matches:
        raise UnknownNameError(
            f"{where}: no layer that can be converted is called '{pattern}': {nearest(pattern, able)}"
            f"the layers are: {', '.join(able) or 'none'}"
        )
    return matches


def _overridden(
    able: Sequence[str], base: LayerOptions, overrides: Mapping[str, Mapping[str, Any] | str]
) -> dict[str, LayerOptions]:
    fields = LayerOptions.__dataclass_fields__
    if not isinstance(overrides, Mapping):
        raise ConfigError(f"overrides takes a mapping of name pattern to options; {overrides!r} was given")
    chosen: dict[str, LayerOptions] = {}
    for pattern, wanted in overrides.items():
        if isinstance(wanted, str):
            if wanted != "float":
                raise ConfigError(f"override '{pattern}': expected options or 'float', '{wanted}' was given")
            wanted = {"weights": FLOAT, "activations": FLOAT}
        if not isinstance(wanted, Mapping):
            raise ConfigError(f"override '{pattern}': expected options such as {{'weights': 2}}, {wanted!r} was given")
        for key in wanted:
            if key not in fields:
                raise UnknownNameError(
                    f"override '{pattern}' has no option '{key}': {nearest(key, fields)}it takes: {', '.join(fields)}"
                )
        for name in _matches(pattern, able, "overrides"):
            chosen[name] = replace(chosen.get(name, base), **wanted)
            _check_options(chosen[name])
    return chosen


def _check_options(options: LayerOptions) -> None:
    """Raises: LowbitError for what is wrong whatever the layer, also when no layer comes to use it."""
    for key, bits in (("weights", options.weights), ("activations", options.activations)):
        if isinstance(bits, bool) or not isinstance(bits, int) or (bits != FLOAT and not 1 <= bits <= 8):
            raise ConfigError(f"{key}={bits!r}: expected a number of bits from 1 to 8, or 32 for float")
    for key, spec in (
        ("quantizer", options.quantizer),
        ("activation_quantizer", options.activation_quantizer),
    ):
        # Not an object: every layer needs a quantizer of its own, with a scale of its own.
        if spec is not None and not isinstance(spec, str):
            raise ConfigError(f"{key}={spec!r}: expected the name of a quantizer, such as 'lsq(bits=4)'")
        if spec is not None:
            QUANTIZERS.get(_spec.parse(spec)[0])
    for key, rule in (("estimator", options.estimator), ("activation_estimator", options.activation_estimator)):
        if rule is not None and not isinstance(rule, str | AbstractEstimator):
            raise ConfigError(f"{key}={rule!r}: expected the name of an estimator, such as 'clipped', or an object")
        if rule is not None:
            build_estimator(rule)


def _build_for_check(name: str, module: nn.Module, options: LayerOptions) -> None:
    try:
        options.build_input(name, module)
        built = options.build_weight(module)
        if isinstance(built, FakeQuantize):
            built.quantizer.granularity.blocks(module.weight)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"layer '{name}': {error}") from None
