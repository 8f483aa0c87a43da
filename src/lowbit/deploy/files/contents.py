"""What of a converted model goes into a file, and how its quantizers come out of one again.

| tensor | holds |
| --- | --- |
| `LAYER.weight.codes` | the codes of a low-bit weight, packed by `pack_codes` |
| `LAYER.weight.scale` | their scale, as the quantizer gave it |
| any other | a parameter or buffer, under its name in the model's `state_dict` |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowbit._errors import ArtefactError, LowbitError
from lowbit.deploy.evaluating import evaluating
from lowbit.deploy.files import describe
from lowbit.deploy.files.fixed import FixedCodes
from lowbit.deploy.files.pack import pack_codes, unpack_codes
from lowbit.layers import FakeQuantize, plain_name
from lowbit.quantizers import AbstractQuantizer
from lowbit.quantizers.scale import Scale

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Contents:
    """What of a model goes into a file.

    Args:
        modules: the layers, by name.
        tensors: by name.
        shared: names of tensors that are the same object as another, with that one's name.
    """

    modules: Mapping[str, describe.Module]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        """The header's part, as JSON values."""
        return {"modules": {name: module.to_json() for name, module in self.modules.items()}, "shared": self.shared}


def contents(model: nn.Module) -> Contents:
    """What a file holds of a model, which is left as it was.

    Raises: ArtefactError, as `artefact.save` does.
    """
    with evaluating(model), torch.no_grad():
        found = Contents(describe.describe(model))
        if not any(module.kind in describe.LOW_BIT for module in found.modules.values()):
            raise ArtefactError(
                "the model has no low-bit layers: lowbit.convert() makes them; save float ones with torch"
            )
        layers = {plain_name(name): module for name, module in model.named_modules()}
        names: dict[int, str] = {}
        for name, tensor in plain_tensors(model, found.modules):
            first = names.setdefault(id(tensor), name)
            if first == name:
                found.tensors[name] = tensor.detach()
            else:
                found.shared[name] = first
        for name, module in found.modules.items():
            added = _quantized(layers[name], name, module)
            clash = added.keys() & found.tensors.keys()
            if clash:
                raise ArtefactError(f"the model has a tensor called '{min(clash)}' already: rename it")
            found.tensors.update(added)
    return found


def plain_tensors(model: nn.Module, modules: Mapping[str, describe.Module]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers by name, but for weights stored as codes and the insides of layers' quantizers.

    Each module once; a tensor that several modules hold comes once for each.

    Raises: ArtefactError for what a file of tensors cannot hold.
    """
    layers = {plain_name(name): module for name, module in model.named_modules()}
    inside: set[int] = set()
    for name, module in modules.items():
        if module.kind in describe.LOW_BIT:
            for side in ("weight_quantizer", "input_quantizer"):
                inside.update(id(m) for m in getattr(layers[name], side, nn.Module()).modules())
    seen = set()
    for prefix, owner in layers.items():
        if id(owner) in inside:
            continue
        if type(owner).get_extra_state is not nn.Module.get_extra_state:
            raise ArtefactError(
                f"module '{prefix}' keeps state that is no tensor (get_extra_state): it cannot be stored"
            )
        coded = prefix in modules and modules[prefix].weight is not None
        held = {**owner._parameters, **owner._buffers}
        for own, tensor in held.items():
            name = f"{prefix}.{own}" if prefix else own
            if tensor is None or own in owner._non_persistent_buffers_set or (coded and own == "weight"):
                continue
            if name in seen:
                raise ArtefactError(f"two tensors of the model are called '{name}': rename one of the modules")
            seen.add(name)
            check_storable(name, tensor)
            yield name, tensor


def check_storable(name: str, tensor: Tensor) -> None:
    """Raises: ArtefactError for a tensor without values, or of a form that a file cannot hold."""
    if nn.parameter.is_lazy(tensor):
        raise ArtefactError(f"the shape of '{name}' is not known yet: run the model once")
    if tensor.is_meta:
        raise ArtefactError(f"'{name}' lies on the meta device and has no values: call to_empty(device='cpu') first")
    if tensor.layout != torch.strided:
        raise ArtefactError(f"'{name}' is sparse: make it dense first")


def _quantized(layer: nn.Module, name: str, module: describe.Module) -> dict[str, Tensor]:
    """The tensors of a layer's quantizers and of its weight, if that is low-bit, by their names in the file."""
    result: dict[str, Tensor] = {}
    try:
        if module.weight is not None:
            codes, scale, state = _weight(layer, module)
            result |= {f"{name}.weight.codes": codes, f"{name}.weight.scale": scale}
            result |= {f"{quantizer_prefix(name, 'weight')}.{key}": tensor for key, tensor in state.items()}
        if module.input is not None:
            state = _input(layer, module.input)
            result |= {f"{quantizer_prefix(name, 'input')}.{key}": tensor for key, tensor in state.items()}
    except LowbitError as error:
        raise ArtefactError(f"layer '{name}': {error}") from None
    return result


def quantizer_prefix(name: str, side: str) -> str:
    """What stands before the names of a quantizer's tensors; side is "weight" or "input"."""
    return f"{name}.{side}_quantizer.quantizer"


def _origin(quantizer: AbstractQuantizer) -> AbstractQuantizer:
    return quantizer.origin if isinstance(quantizer, FixedCodes) else quantizer


def _weight(layer: nn.Module, module: describe.Module) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Packed codes, scale and further tensors of a layer's weight, after a look whether they give it again."""
    weight, quantize = layer.weight, layer.weight_quantizer
    assert isinstance(weight, Tensor)
    assert isinstance(quantize, FakeQuantize)
    if not bool(torch.isfinite(weight).all()):
        raise ArtefactError("its weight holds values that are not finite, which no code stands for")
    quantizer = quantize.quantizer
    x = weight.detach().float() if weight.dtype in HALF else weight.detach()
    scale = quantizer.scale(quantizer.granularity.blocks(x)).detach()
    codes, state = pack_codes(quantizer, x), _state(_origin(quantizer), scales=False)
    again = FakeQuantize(fixed_codes(module, codes, scale, state), quantize.rule).eval()
    if not torch.equal(again(weight), quantize(weight)):
        raise ArtefactError("its codes and scale do not give its weight again: its quantizer does not do what it says")
    return codes, scale, state


def _input(layer: nn.Module, described: describe.Quantizer) -> dict[str, Tensor]:
    """The tensors of what quantizes a layer's input, after a look whether they give it again."""
    quantize = layer.input_quantizer
    assert isinstance(quantize, FakeQuantize)
    for part in quantize.modules():
        if isinstance(part, Scale) and part.value is not None and not bool(part.initialized):
            raise ArtefactError(
                "the scale of its input was never learned, so that results would depend on the batch: train the model, "
                "or call lowbit.calibrate(model, inputs)"
            )
    state = _state(quantize.quantizer, scales=True)
    activation_quantizer(described, state)
    return state


def fixed_codes(module: describe.Module, codes: Tensor, scale: Tensor, state: Mapping[str, Tensor]) -> FixedCodes:
    """What takes the place of a weight's quantizer.

    Args:
        module: the layer.
        codes: packed.
        scale: of the weight's block view.
        state: further tensors of the quantizer, by their names within it.

    Raises: ArtefactError for codes or a scale that this weight cannot have.
    """
    assert module.weight is not None
    assert module.shape is not None
    quantizer = describe.build(module.weight, module.shape)
    expected = quantizer.granularity.scale_shape(module.shape)
    if not scale.is_floating_point() or not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise ArtefactError("a scale of its weight is not a positive number")
    if tuple(scale.shape) not in ((), expected):
        raise ArtefactError(f"the scale of its weight has shape {tuple(scale.shape)}: expected {expected}")
    _fill(quantizer, state, scales=False)
    for part in quantizer.modules():
        if isinstance(part, Scale) and part.value is not None:
            part.value.data = scale.expand(expected).clone()
            part.initialized.fill_(True)
    try:
        return FixedCodes(quantizer, unpack_codes(quantizer, codes, module.shape), scale)
    except LowbitError as error:
        raise ArtefactError(f"the codes of its weight: {error}") from None


def activation_quantizer(described: describe.Quantizer, state: Mapping[str, Tensor]) -> AbstractQuantizer:
    """The quantizer of an activation, with its learned scale. Raises: ArtefactError."""
    quantizer = describe.build(described, None)
    _fill(quantizer, state, scales=True)
    for part in quantizer.modules():
        if isinstance(part, Scale) and part.value is not None:
            if not bool(torch.isfinite(part.value).all()):
                raise ArtefactError("the scale of its input is not a finite number")
            part.initialized.fill_(True)
    return quantizer.eval()


def _state(quantizer: AbstractQuantizer, scales: bool) -> dict[str, Tensor]:
    """A quantizer's tensors by name; of its scales the values alone, or nothing."""
    without = ["initialized", "levels"] if scales else ["value", "initialized", "levels"]
    found = [name for name, part in quantizer.named_modules() if isinstance(part, Scale)]
    skipped = {f"{name}.{key}" for name in found for key in without}
    own = quantizer.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in own.items() if name not in skipped}


def _fill(quantizer: AbstractQuantizer, state: Mapping[str, Tensor], scales: bool) -> None:
    """Put the tensors of `_state` into a quantizer. Raises: ArtefactError where they are not those it has."""
    own = _state(quantizer, scales)
    for name in own.keys() ^ state.keys():
        raise ArtefactError(f"its quantizer's tensor '{name}' is {'missing' if name in own else 'unexpected'}")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape or state[name].is_floating_point() != tensor.is_floating_point():
            raise ArtefactError(
                f"its quantizer's tensor '{name}' has shape {tuple(state[name].shape)}, {state[name].dtype}: expected "
                f"{tuple(tensor.shape)}, {tensor.dtype}"
            )
        tensor.data = state[name].detach().clone()  # its dtype too: scales keep the one they were learned in
