"""Conversion: which layers, which bits. `plan` decides and explains, `convert` acts."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lowbit._errors import ConfigError
from lowbit.estimators import AbstractEstimator
from lowbit.layers.activation import QuantReLU
from lowbit.layers.caution import cautions
from lowbit.layers.conv import QuantConv1d, QuantConv2d, QuantConv3d, QuantConvTranspose2d
from lowbit.layers.fake_quantize import FakeQuantize
from lowbit.layers.inspect import QUANT_LAYERS
from lowbit.layers.linear import QuantLinear
from lowbit.layers.normalisation import NORMS
from lowbit.layers.options import FLOAT, LayerOptions, check_options, kept_in_float, overridden, rectifies
from lowbit.layers.text import as_text

_log = logging.getLogger("lowbit")

KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    nn.Linear: QuantLinear,
}
RECTIFIERS = (nn.ReLU, nn.ReLU6)  # the activation functions whose place a quantizer that rectifies can take


@dataclass(frozen=True)
class LayerPlan:
    """One layer of a plan: what happens to it, and why."""

    name: str
    kind: str
    action: Literal["convert", "keep"]
    reason: str
    options: LayerOptions | None
    rectifier: bool = False
    """Whether it is an activation function, which has no weights, and not a layer."""

    @property
    def weight_bits(self) -> int | None:
        """Bits of its weights; None where it has none."""
        return None if self.rectifier else self.options.weights if self.options else FLOAT

    @property
    def activation_bits(self) -> int:
        """Bits to which it quantizes what comes in."""
        if self.options is None:
            return FLOAT
        return self.options.activations if self.rectifier else self.options.input_bits


@dataclass(frozen=True)
class ConversionPlan:
    """What `convert` will do to a model: every layer that has weights, in the order of the model's modules.

    With a quantizer that rectifies, the activation functions whose place it takes are among them.
    """

    model: nn.Module
    layers: tuple[LayerPlan, ...]

    def activation_quantizers(self) -> list[tuple[str, FakeQuantize]]:
        """What will quantize activations, with the layer or the activation function that it belongs to."""
        modules = dict(self.model.named_modules())
        found = []
        for layer in self.converted:
            assert layer.options is not None
            if layer.rectifier:
                found.append((layer.name, layer.options.build_activation(layer.name)))
                continue
            module = layer.options.build_input(layer.name, modules[layer.name])
            if isinstance(module, FakeQuantize):
                found.append((layer.name, module))
        return found

    @property
    def converted(self) -> tuple[LayerPlan, ...]:
        """The layers that change."""
        return tuple(layer for layer in self.layers if layer.action == "convert")

    def render(self) -> Table:
        """The plan as a table."""
        table = Table("layer", "kind", "weights", "activations", "why", title="conversion")
        for layer in self.layers:
            table.add_row(layer.name, layer.kind, _bits(layer.weight_bits), _bits(layer.activation_bits), layer.reason)
        return table

    def __str__(self) -> str:
        return as_text(self.render())

    def describe(self) -> str:
        """The plan in one line."""
        kept = [f"{layer.name} ({layer.reason})" for layer in self.layers if layer.action == "keep"]
        activations = sum(layer.rectifier for layer in self.converted)
        replaced = f", {activations} activation functions replaced" if activations else ""
        count = len(self.converted) - activations
        return f"{count} layers converted{replaced}; kept in float: {', '.join(kept) or 'none'}"

    def apply(self) -> nn.Module:
        """A converted copy of the model; the model itself is left as it was."""
        # A weight that a hook computes (nn.utils.weight_norm) is no leaf, and deepcopy refuses it: copied here instead.
        computed = [t for m in self.model.modules() for t in vars(m).values() if isinstance(t, Tensor)]
        result = copy.deepcopy(self.model, {id(t): t.detach().clone() for t in computed if not t.is_leaf})
        modules = dict(result.named_modules())
        like = next((p for p in result.parameters() if p.is_floating_point()), torch.zeros(()))
        for layer in self.converted:
            assert layer.options is not None
            module = modules[layer.name]
            if layer.rectifier:
                module.__class__ = QuantReLU
                module.input_quantizer = layer.options.build_activation(layer.name).to(like)
                module.train(module.training)
                continue
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
            leave_fast_path(module)
            if self.converted and type(module) in NORMS:
                module.__class__ = NORMS[type(module)]
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
    check_options(base)
    for name, module in model.named_modules():
        if isinstance(module, QuantReLU):
            raise ConfigError(f"activation '{name}' is low-bit already: convert() takes the float model")
    found = {name: module for name, module in model.named_modules() if _has_weights(module)}
    reasons = {name: _obstacle(model, name, module) for name, module in found.items()}
    able = [name for name, reason in reasons.items() if not reason]
    rectifiers = _rectifiers(model, base, overrides or {})
    kept = kept_in_float(able, list(rectifiers), keep_float)
    chosen = overridden([*able, *rectifiers], base, overrides or {})
    layers = []
    for name, module in model.named_modules():
        if name not in found and name not in rectifiers:
            continue
        options: LayerOptions | None = None
        reason = reasons.get(name, "") or (kept.get(name, "") if name not in chosen else "")
        if not reason:
            options = chosen.get(name, base)
            reason = "override" if name in chosen else "default"
            if options is None or not _changes(options, name in rectifiers):
                options, reason = None, f"{reason}: float"
        action: Literal["convert", "keep"] = "convert" if options else "keep"
        layers.append(LayerPlan(name, type(module).__name__, action, reason, options, name in rectifiers))
        if options:
            _build_for_check(name, module, options)
    decided = ConversionPlan(model, tuple(layers))
    if not base.rectifies:
        _check_rectified(decided, chosen)
    return decided


def _check_rectified(decided: ConversionPlan, chosen: Mapping[str, LayerOptions]) -> None:
    """Raises: ConfigError when overrides ask for a quantizer that rectifies, but name no ReLU."""
    layers = [name for name, options in chosen.items() if options.rectifies]
    if layers and not any(layer.rectifier for layer in decided.converted):
        raise ConfigError(
            f"the overrides give layer '{layers[0]}' a quantizer that rectifies, which takes the place of nn.ReLU "
            "modules, but none of those: name the ReLU itself, or take activation_quantizer='unsigned' for the layer's "
            "input"
        )


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

    Parameter names stay, so that a float `state_dict` loads. Batch normalisations keep theirs too, but become
    `ExactBatchNorm`s, whose evaluation rounds the same way on every processor. Converted are `nn.Conv1d/2d/3d` (groups
    and depthwise too), `nn.ConvTranspose2d` and `nn.Linear`, wherever they sit; a module that is shared stays shared.
    What was converted and what was left, and why, goes to the log `lowbit` at level INFO; `plan(...)` with the same
    arguments returns it.

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
    for caution in cautions(decided):
        _log.warning("%s", caution)
    if decided.converted or (weights == FLOAT and activations == FLOAT):
        _log.info("%s", decided.describe())
    else:
        _log.warning("nothing was made low-bit: %s; see keep_float", decided.describe())
    return decided.apply()


def _changes(options: LayerOptions, rectifier: bool) -> bool:
    """Whether anything becomes low-bit with these options."""
    return options.rectifies if rectifier else min(options.weights, options.input_bits) < FLOAT


def _bits(number: int | None) -> str:
    return "" if number is None else "float" if number == FLOAT else f"{number} bit"


def _rectifiers(model: nn.Module, base: LayerOptions, overrides: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The activation functions whose place the quantizer takes, if one that rectifies is asked for."""
    wanted = overrides.values() if isinstance(overrides, Mapping) else ()  # what is wrong is said later
    specs = [options.get("activation_quantizer") for options in wanted if isinstance(options, Mapping)]
    if not base.rectifies and not any(rectifies(spec) for spec in specs if isinstance(spec, str)):
        return {}
    found = {name: module for name, module in model.named_modules() if type(module) in RECTIFIERS}
    if not found:
        raise ConfigError(
            "a quantizer that rectifies, as 'staircase' does, takes the place of nn.ReLU modules, and this model has "
            "none (calls of torch.nn.functional.relu are not seen): make its ReLUs modules, or take "
            "activation_quantizer='unsigned', which quantizes the inputs of the layers"
        )
    return found


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


def leave_fast_path(module: nn.Module) -> None:
    """Keep torch's transformer encoders from their fused evaluation path, which reads weights past the quantizers."""
    if not any(isinstance(inner, (*QUANT_LAYERS, QuantReLU)) for inner in module.modules()):
        return
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0
    if isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False  # the packed sequences it makes for that path have no shape to quantize over


def _build_for_check(name: str, module: nn.Module, options: LayerOptions) -> None:
    try:
        if type(module) in RECTIFIERS:
            options.build_activation(name)
            return
        options.build_input(name, module)
        built = options.build_weight(module)
        if isinstance(built, FakeQuantize):
            built.quantizer.granularity.blocks(module.weight)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"layer '{name}': {error}") from None
