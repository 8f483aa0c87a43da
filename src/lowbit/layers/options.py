"""What one layer becomes, and which layers the user's patterns mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from lowbit import _spec
from lowbit._errors import ConfigError, UnknownNameError, nearest
from lowbit.estimators import AbstractEstimator, build_estimator, check_pair
from lowbit.layers.fake_quantize import FakeQuantize
from lowbit.quantizers import QUANTIZERS, AbstractQuantizer, PerTensor, build_quantizer

FLOAT = 32


@dataclass(frozen=True)
class LayerOptions:
    """What one layer becomes; the keys an override may set.

    Args:
        weights, activations: bits, 1 to 8; 32 leaves that side in float.
        estimator, quantizer: for the weights; None lets the bits choose (1: sign, 2 to 8: lsq).
        activation_estimator, activation_quantizer: for the layer's input; None: clipped, unsigned. A quantizer that
            rectifies (`staircase`) takes the place of the ReLUs instead, and leaves the inputs of the layers alone.
    """

    weights: int = 1
    activations: int = FLOAT
    estimator: str | AbstractEstimator = "clipped"
    quantizer: str | None = None
    activation_quantizer: str | None = None
    activation_estimator: str | AbstractEstimator | None = None

    @property
    def rectifies(self) -> bool:
        """Whether the activations are quantized in the place of the ReLUs, not at the inputs of the layers."""
        return self.activations != FLOAT and rectifies(self._input_spec)

    @property
    def input_bits(self) -> int:
        """Bits to which a layer quantizes its input itself."""
        return FLOAT if self.rectifies else self.activations

    @property
    def _input_spec(self) -> str:
        return self.activation_quantizer or "unsigned"

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
        if self.input_bits == FLOAT:
            return nn.Identity()
        axis = -1 if isinstance(layer, nn.Linear) else 1
        return self._activation(axis, f"the input of layer '{name}'")

    def build_activation(self, name: str) -> FakeQuantize:
        """What takes the place of a ReLU. Raises: LowbitError."""
        return self._activation(1, f"activation '{name}'")

    def _activation(self, axis: int, name: str) -> FakeQuantize:
        spec = self._input_spec
        quantizer = build_quantizer(spec, self.activations, shape=None, axis=axis, batched=True)
        if not quantizer.static:
            raise ConfigError(
                f"quantizer '{spec}' computes its scale from the tensor itself: on activations, the result for one "
                "example would depend on the others of its batch; take a learned scale, as in 'unsigned' or 'lsq'"
            )
        estimator = build_estimator(self.activation_estimator or "clipped")
        return _pair(quantizer, estimator, "activations", name)


def rectifies(spec: str) -> bool:
    """Whether the quantizer of this spec is an activation function itself. Raises: LowbitError."""
    return QUANTIZERS.get(_spec.parse(spec)[0]).rectifies


def _pair(quantizer: AbstractQuantizer, estimator: AbstractEstimator, role: str, name: str = "") -> FakeQuantize:
    check_pair(estimator, quantizer, role)
    return FakeQuantize(quantizer, estimator, name)


def kept_in_float(layers: Sequence[str], activations: Sequence[str], keep_float: Sequence[str]) -> dict[str, str]:
    """Which layers and activation functions stay in float, each with the entry that says so. Raises: LowbitError."""
    if isinstance(keep_float, str):
        raise ConfigError(f"keep_float takes a list of names; write ('{keep_float}',)")
    if not isinstance(keep_float, Sequence) or not all(isinstance(entry, str) for entry in keep_float):
        raise ConfigError(f"keep_float takes a list of names, () for none; {keep_float!r} was given")
    kept: dict[str, str] = {}
    for entry in keep_float:
        if entry in ("first", "last"):
            matches = layers[:1] if entry == "first" else layers[-1:]
        else:
            matches = _matches(entry, [*layers, *activations], "keep_float")
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


def overridden(
    able: Sequence[str], base: LayerOptions, overrides: Mapping[str, Mapping[str, Any] | str]
) -> dict[str, LayerOptions]:
    """The options of the layers that an override means. Raises: LowbitError."""
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
            check_options(chosen[name])
    return chosen


def check_options(options: LayerOptions) -> None:
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
