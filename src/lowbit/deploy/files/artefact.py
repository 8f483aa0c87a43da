"""The artefact: a converted model as packed codes, scales and whatever else it has in float, in one file.

The header says of every layer what kind it is, its geometry and its quantizers, so that a model can be checked, or a
float model converted, before anything is loaded. `contents.py` says which tensors there are, `container.py` what the
file looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lowbit._errors import ArtefactError
from lowbit.deploy.files import container, describe
from lowbit.deploy.files.contents import activation_quantizer, contents, fixed_codes, plain_tensors, quantizer_prefix
from lowbit.deploy.files.fixed import refuse_training
from lowbit.deploy.files.origin import Origin
from lowbit.estimators import AbstractEstimator, build_estimator
from lowbit.layers import FakeQuantize, QuantReLU, plain_name
from lowbit.layers.conversion import KINDS, RECTIFIERS, leave_fast_path
from lowbit.layers.normalisation import NORMS
from lowbit.quantizers import AbstractQuantizer

M = TypeVar("M", bound=nn.Module)

_BECOMES: dict[str, tuple[type[nn.Module], tuple[type[nn.Module], ...]]] = {
    **{kind.__name__: (kind, (plain,)) for plain, kind in (KINDS | NORMS).items()},
    QuantReLU.__name__: (QuantReLU, RECTIFIERS),
}
"""Kind → its class, and the classes of a float model that become one of it."""

_HINT = "convert it with the same options, or load into the float model"


def save(model: nn.Module, path: str | Path, origin: Origin | None = None) -> int:
    """Write a converted model to a `.lowbit` file: low-bit weights as packed codes, the rest as it is.

    The file is written atomically. Latent weights are not in it: a loaded model evaluates, but cannot be trained.

    Args:
        model: the model; it is left as it was.
        path: of the file.
        origin: the architecture and its inputs, for those who have the file alone.

    Returns: the size of the file in bytes.

    Raises:
        ArtefactError: a model without low-bit layers, an activation scale that was never learned, a weight that is not
            finite, a quantizer that is not registered, a disk that refuses.
    """
    found = contents(model)
    more = {} if origin is None else {"origin": origin.to_json()}
    return container.write(Path(path), found.header() | more, found.tensors)


def load(model: M, path: str | Path) -> M:
    """Load a `.lowbit` file into a model, which then computes bit for bit what the saved one computed in evaluation.

    Args:
        model: of the same architecture, on any device: the float model, which is converted on the way, or one converted
            with the same options, whose quantizers must agree with the file's.
        path: the file.

    Returns:
        the same object, in evaluation mode. The weights of its low-bit layers hold the values that the codes stand for;
        the codes are fixed, and `train()` refuses.

    Raises:
        ArtefactError: a file that is damaged, edited or of another version, or that does not fit the model. The model
            is then as it was.
    """
    path = Path(path)
    if not isinstance(model, nn.Module):
        raise ArtefactError(f"load() takes a torch.nn.Module and a file; {type(model).__name__} was given")
    header, tensors = container.read(path)
    try:
        fitted = _fit(model, header, tensors)
    except ArtefactError as error:
        raise ArtefactError(f"'{path}' does not fit: {error}") from None
    _commit(model, fitted)
    return model


@dataclass(frozen=True)
class _Layer:
    """What one module becomes."""

    module: nn.Module
    kind: type[nn.Module]
    weight: nn.Module | None
    input: nn.Module | None


@dataclass(frozen=True)
class _Fitted:
    """Everything that loading changes, before it is changed."""

    layers: list[_Layer]
    values: list[tuple[Tensor, Tensor]]  # a tensor of the model and what it becomes


@torch.no_grad()
def _fit(model: nn.Module, header: dict[str, Any], tensors: Mapping[str, Tensor]) -> _Fitted:
    """Hold a file against a model; the model is not touched. Raises: ArtefactError."""
    described, shared = _parse(header)
    own = {plain_name(name): module for name, module in model.named_modules()}
    described = {name: described[name] for name in own if name in described} | described  # in the order of the model
    _check_modules(own, described, describe.describe(model))
    rest = dict(tensors)
    plain, values = list(plain_tensors(model, described)), {}
    sources: dict[int, str] = {}
    for name, tensor in plain:
        source = shared.get(name, name)
        value = tensors.get(source)
        if value is None:
            raise ArtefactError(f"it lacks the tensor '{source}' of your model")
        _check_tensor(name, value.shape, value.dtype, tensor)
        first = sources.setdefault(id(tensor), source)
        if first != source and not torch.equal(tensors[first], value):
            raise ArtefactError(f"'{first}' and '{source}' are one tensor in your model, but differ in the file")
        values[id(tensor)] = tensor, value
        rest.pop(source, None)
    for name in shared.keys() - {name for name, _ in plain}:
        raise ArtefactError(f"it has a tensor '{name}' that your model has not")
    layers = []
    device = next((tensor.device for _, tensor in plain), torch.device("cpu"))
    for name, module in described.items():
        if module.kind not in _BECOMES:
            continue
        try:
            layer = _layer(own[name], name, module, rest, device)
        except ArtefactError as error:
            raise ArtefactError(f"layer '{name}': {error}") from None
        layers.append(layer)
        weight = own[name]._parameters.get("weight")
        if isinstance(layer.weight, FakeQuantize) and weight is not None:
            # Where a float module shares the weight, the file has its float values, and those stay.
            values.setdefault(id(weight), (weight, layer.weight(weight)))
    for name in rest:
        raise ArtefactError(f"it has a tensor '{name}' that your model has not")
    return _Fitted(layers, list(values.values()))


def _parse(header: dict[str, Any]) -> tuple[dict[str, describe.Module], dict[str, str]]:
    modules, shared = header.get("modules"), header.get("shared")
    known = {"format", "version", "library", "modules", "shared"}
    if header.keys() - {"origin"} != known or not isinstance(modules, dict):
        raise ArtefactError("the header is damaged: it has other entries than lowbit writes")
    if not isinstance(shared, dict) or not all(isinstance(name, str) for name in shared.values()):
        raise ArtefactError("the header is damaged: it does not say which tensors are shared")
    if "origin" in header:
        Origin.from_json(header["origin"])
    return {name: describe.from_json(values) for name, values in modules.items()}, shared


def _check_modules(
    own: Mapping[str, nn.Module], theirs: Mapping[str, describe.Module], ours: Mapping[str, describe.Module]
) -> None:
    """Kinds, geometry, quantizers and shapes of weights agree. Raises: ArtefactError with the first that does not."""
    for name in ours:
        if name not in theirs:
            raise ArtefactError(f"your model has a layer '{name}' ({ours[name].kind}), the file has none of that name")
    for name, module in theirs.items():
        if name not in own:
            raise ArtefactError(f"the file has a layer '{name}' ({module.kind}), your model has none of that name")
        mine = ours.get(name)
        converts = module.kind in _BECOMES and type(own[name]) in _BECOMES[module.kind][1]
        if not converts and (mine is None or mine.kind != module.kind):
            given = type(own[name]).__name__
            raise ArtefactError(f"layer '{name}' is a {module.kind} in the file, a {given} in your model; {_HINT}")
        if mine is None:
            continue
        if dict(mine.geometry) != dict(module.geometry):
            here, there = _words(mine.geometry), _words(module.geometry)
            raise ArtefactError(f"layer '{name}' has {there} in the file, {here} in your model")
        if module.shape is not None:
            weight = own[name].weight
            assert isinstance(weight, Tensor)
            _check_tensor(f"{name}.weight", torch.Size(module.shape), module.dtype, weight)
        if not converts:
            _check_quantizers(name, module, mine)


def _check_quantizers(name: str, theirs: describe.Module, ours: describe.Module) -> None:
    for side, first, second in (("weight", theirs.weight, ours.weight), ("input", theirs.input, ours.input)):
        if not describe.agree(first, second):
            raise ArtefactError(
                f"layer '{name}' has the {side} quantizer {_spec(first)} in the file, {_spec(second)} in your model; "
                + _HINT
            )


def _words(geometry: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(geometry.items())) or "the usual geometry"


def _spec(quantizer: describe.Quantizer | None) -> str:
    return "none" if quantizer is None else f"'{quantizer.spec}'"


def _check_tensor(name: str, shape: torch.Size, dtype: torch.dtype | str | None, tensor: Tensor) -> None:
    if tensor.shape != shape:
        raise ArtefactError(f"'{name}' has shape {tuple(shape)} in the file, {tuple(tensor.shape)} in your model")
    theirs, ours = (str(d).removeprefix("torch.") for d in (dtype, tensor.dtype))
    if theirs != ours:
        change = f": call model.to(torch.{theirs}) first" if tensor.is_floating_point() else ""
        raise ArtefactError(f"'{name}' is {theirs} in the file, {ours} in your model{change}")


def _layer(own: nn.Module, name: str, module: describe.Module, rest: dict[str, Tensor], device: torch.device) -> _Layer:
    """What a module becomes; its tensors are taken out of `rest`. Raises: ArtefactError."""
    kind, _ = _BECOMES[module.kind]
    if module.kind not in describe.LOW_BIT:
        return _Layer(own, kind, None, None)
    weight: AbstractQuantizer | None = None
    input: AbstractQuantizer | None = None
    if module.weight is not None:
        codes, scale = (_taken(rest, f"{name}.weight.{part}") for part in ("codes", "scale"))
        weight = fixed_codes(module, codes, scale, _taken_all(rest, quantizer_prefix(name, "weight")))
    if module.input is not None:
        input = activation_quantizer(module.input, _taken_all(rest, quantizer_prefix(name, "input")))
    device = next((tensor.device for tensor in own.parameters()), device)
    sides = [
        _paired(own, "weight_quantizer", weight, "").to(device),
        _paired(own, "input_quantizer", input, name).to(device),
    ]
    return _Layer(own, kind, *sides)


def _paired(own: nn.Module, side: str, quantizer: AbstractQuantizer | None, name: str) -> nn.Module:
    """The quantizer with the estimator that the layer has for it; a float layer has none, and evaluation needs none."""
    if quantizer is None:
        return nn.Identity()
    before = own._modules.get(side)
    rule: AbstractEstimator = before.rule if isinstance(before, FakeQuantize) else build_estimator("clipped")
    return FakeQuantize(quantizer, rule, name and f"the input of layer '{name}'").eval()


def _taken(rest: dict[str, Tensor], name: str) -> Tensor:
    if name not in rest:
        raise ArtefactError(f"the tensor '{name}' is missing")
    return rest.pop(name)


def _taken_all(rest: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = [name for name in rest if name.startswith(f"{prefix}.")]
    return {name.removeprefix(f"{prefix}."): rest.pop(name) for name in names}


@torch.no_grad()
def _commit(model: nn.Module, fitted: _Fitted) -> None:
    for layer in fitted.layers:
        layer.module.__class__ = layer.kind
        if layer.weight is not None and not isinstance(layer.module, QuantReLU):
            layer.module.weight_quantizer = layer.weight
            if isinstance(layer.weight, FakeQuantize):
                layer.module.weight.requires_grad_(False)
        if layer.input is not None:
            layer.module.input_quantizer = layer.input
    for module in model.modules():
        leave_fast_path(module)
    for tensor, value in fitted.values:
        tensor.copy_(value)
    model.eval()
    refuse_training(model)
