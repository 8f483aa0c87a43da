"""The proof of an export: the exported model against the trained one, layer by layer, on inputs that hurt."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from lowbit._errors import ArtefactError, ConfigError
from lowbit.deploy.evaluating import evaluating
from lowbit.deploy.files.artefact import load
from lowbit.deploy.files.sizes import sizes
from lowbit.deploy.proof.inputs import Case, adversarial_inputs
from lowbit.deploy.proof.observe import (
    Entry,
    Inputs,
    Trace,
    as_arguments,
    flatten,
    low_bit_modules,
    observe,
    whole_numbers,
)
from lowbit.deploy.proof.report import Difference, LayerComparison, Report
from lowbit.layers import FakeQuantize, QuantReLU, is_integer, plain_name

Shown: TypeAlias = tuple[dict[str, Tensor], tuple[Tensor, ...]]
"""What a runtime shows of one run: tensors by "layer:codes" and "layer:output", and what the model returns."""

ONNX = (".onnx", ".qonnx")
SIDES = (32, 28, 64, 224, 96, 128, 16, 8)  # of images that are tried where no inputs are given

_SUMS = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.Softmax,
)
"""Modules that sum real numbers, or compute functions that runtimes round differently."""


@runtime_checkable
class Observable(Protocol):
    """A compiled model, which shows what it computes on its way."""

    def observe(self, inputs: Inputs) -> Trace:
        """What one run showed; it may leave out layers' outputs, but no codes."""
        ...


def verify(
    model: nn.Module,
    other: str | Path | Observable,
    inputs: Inputs | list[Inputs] | None = None,
    adversarial: bool = True,
    seed: int = 0,
) -> Report:
    """Compare an exported model with the trained one: every code, every layer's output, on every input.

    Args:
        model: the trained model; it is left as it was.
        other: the path of a `.lowbit`, `.onnx` or `.qonnx` file, or a compiled model.
        inputs: a tensor, a tuple of positional arguments, or a list of such. Without them the shape of an example is
            guessed from the first layer.
        adversarial: add inputs like the first one that are made to hurt: all equal, extreme, on ties.
        seed: of what is drawn for them.

    Raises:
        ArtefactError: the file cannot be loaded into the model.
        ConfigError: inputs that the model does not take, a file of another kind, a runtime that is not installed.
    """
    cases, given = _cases(model, inputs)
    if adversarial:
        made = adversarial_inputs(model, cases[0].inputs, seed)
        cases, given = [*cases, *made], f"{given}; {len(made)} made to hurt (seed {seed})"
    run = _runner(model, other)
    modules = low_bit_modules(model)
    tally = _Tally({name: _is_exact(module) for name, module in modules.items()})
    for case in cases:
        expected = observe(model, case.inputs)
        shown, outputs = run(case.inputs)
        first = tally.add(case, expected, shown, outputs)
        if first is not None:
            explained, why = _explanation(model, case, first, shown)
            tally.note(first, explained, why)
    stored = sizes(model)
    after = Path(other).stat().st_size if isinstance(other, str | Path) else stored.after
    return Report(
        identical=tally.first is None,
        first_difference=tally.first,
        explanation=tally.explanation,
        explained=tally.explained,
        layers=tuple(tally.layers.values()),
        outputs_max_difference=tally.outputs,
        predictions_equal=tally.predictions,
        float_tensors=tuple((tensor.name, tensor.bytes) for tensor in stored.float_tensors),
        bytes_before=stored.before,
        bytes_after=after,
        other=Path(other).name if isinstance(other, str | Path) else f"the {type(other).__name__}",
        inputs=given,
    )


def _is_exact(module: nn.Module) -> bool:
    return isinstance(module, QuantReLU) or is_integer(module)


def _cases(model: nn.Module, inputs: Inputs | list[Inputs] | None) -> tuple[list[Case], str]:
    if inputs is None:
        guessed = _guess(model)
        shape = "×".join(map(str, guessed.shape))
        return [Case("an example", (guessed,))], f"one drawn example of the guessed shape {shape}"
    calls = list(inputs) if isinstance(inputs, list) else [inputs]
    if not calls:
        raise ConfigError("verify() was given an empty list of inputs: give at least one, or none at all")
    cases = [Case(f"given {place}", as_arguments(call)) for place, call in enumerate(calls)]
    return cases, f"{len(cases)} given"


def _guess(model: nn.Module) -> Tensor:
    """An input that the model takes, by the looks of its first layer. Raises: ConfigError."""
    first = next((m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)), None)
    shapes: list[tuple[int, ...]] = []
    if isinstance(first, nn.Linear):
        shapes = [(2, first.in_features)]
    elif first is not None:
        shapes = [(2, first.in_channels, *[side] * len(first.kernel_size)) for side in SIDES]
    for shape in shapes:
        example = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        example = example.to(first.weight)  # type: ignore[union-attr]
        try:
            with evaluating(model), torch.no_grad():
                model(example)
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError):  # torch's modules raise each
            continue
        return example
    raise ConfigError("no shape could be guessed that the model takes: give verify() inputs, for example some images")


def _runner(model: nn.Module, other: str | Path | Observable) -> Callable[[tuple[Any, ...]], Shown]:
    if isinstance(other, str | Path):
        path = Path(other)
        if path.suffix in ONNX:
            return _onnx_runner(path)
        loaded = load(_scrambled(model), path)
        return lambda inputs: _shown(observe(loaded, inputs))
    if isinstance(other, Observable):
        return lambda inputs: _shown(other.observe(inputs))
    raise ConfigError(f"verify() compares a model with a path or a compiled model; {type(other).__name__} was given")


def _shown(trace: Trace) -> Shown:
    return trace.tensors(), trace.outputs


def _onnx_runner(path: Path) -> Callable[[tuple[Any, ...]], Shown]:
    if not path.is_file():
        raise ArtefactError(f"there is no file '{path}'")
    try:
        runner = importlib.import_module("lowbit.deploy.onnx.runner")
    except ImportError as error:
        raise ConfigError(
            f"'{path.name}' cannot be run here ({error}): install what runs ONNX with pip install 'lowbit[onnx]'"
        ) from None

    def run(inputs: tuple[Any, ...]) -> Shown:
        shown, outputs = runner.run(path, inputs)
        return dict(shown), tuple(flatten(outputs))

    return run


def _scrambled(model: nn.Module) -> nn.Module:
    """A copy of the model with none of its values, so that whatever loading forgets shows."""
    computed = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    result = copy.deepcopy(model, {id(t): t.detach().clone() for t in computed})
    with torch.no_grad():
        for tensor in result.state_dict().values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
    return result


@dataclass
class _Tally:
    """What was found so far, over all inputs."""

    exact: dict[str, bool]
    layers: dict[str, LayerComparison] = field(default_factory=dict)
    first: Difference | None = None
    explanation: str = ""
    explained: bool = True
    outputs: float = 0.0
    predictions: bool | None = None

    def add(
        self, case: Case, expected: Trace, shown: dict[str, Tensor], outputs: tuple[Tensor, ...]
    ) -> Difference | None:
        """Compare one run; the first difference in it."""
        first: Difference | None = None
        for entry in expected.entries:
            exact = entry.what == "codes" or self.exact[_module_name(entry.layer)]
            found = _compare(case.name, entry, shown.get(entry.key), exact)
            self._count(entry, shown.get(entry.key), found)
            first = first or found
        if len(outputs) != len(expected.outputs):
            texts = (f"{len(expected.outputs)} tensors", f"{len(outputs)}")
            return first or Difference(case.name, "outputs", "output", None, *texts, 0, 0)
        for place, (value, got) in enumerate(zip(expected.outputs, outputs, strict=True)):
            entry = Entry("outputs" if not place else f"outputs#{place + 1}", "output", value)
            found = _compare(case.name, entry, got, exact=False)
            first = first or found
            if value.shape == got.shape:
                self.outputs = max(self.outputs, _largest(value, got))
                if value.ndim == 2 and value.is_floating_point():
                    same = torch.equal(value.argmax(-1), got.argmax(-1).to(value.device))
                    self.predictions = same and self.predictions is not False
        return first

    def note(self, first: Difference, explained: bool, why: str) -> None:
        """Keep the first difference of one run, if it is the first of all."""
        if self.first is None:
            self.first, self.explanation = first, why
        self.explained = self.explained and explained

    def _count(self, entry: Entry, got: Tensor | None, found: Difference | None) -> None:
        usual = LayerComparison(entry.layer, self.exact[_module_name(entry.layer)], 0, 0, None)
        before = self.layers.get(entry.layer, usual)
        codes, differing, largest = before.codes, before.differing, before.output_difference
        if entry.what == "codes":
            codes += entry.value.numel()
            differing += found.differing if found else 0
        elif got is not None and got.shape == entry.value.shape:
            largest = max(largest or 0.0, _largest(entry.value, got))
        self.layers[entry.layer] = LayerComparison(entry.layer, before.exact, codes, differing, largest)


def _module_name(layer: str) -> str:
    name, mark, number = layer.rpartition("#")
    return name if mark and number.isdigit() else layer


def _largest(expected: Tensor, got: Tensor) -> float:
    """The largest |expected − got|; places that are equal, or both not a number, count as 0."""
    difference = (expected.double() - got.to(expected.device).double()).abs()
    difference = torch.where(_equal(expected, got), 0.0, difference)
    return float(difference.nan_to_num(nan=torch.inf).max()) if difference.numel() else 0.0


def _equal(expected: Tensor, got: Tensor) -> Tensor:
    got = got.to(expected.device)
    return (expected == got) | (expected.isnan() & got.isnan())


def rounding(x: Tensor) -> float:
    """What sums of real numbers, taken in another order, may change in a tensor: 2¹⁰ units in its last place."""
    eps = torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
    finite = x[x.isfinite()]
    return min(1024 * eps, 1 / 32) * float(finite.abs().max()) if finite.numel() else 0.0


def _compare(case: str, entry: Entry, got: Tensor | None, exact: bool) -> Difference | None:
    expected, layer, what = entry.value, entry.layer, entry.what
    if got is None:
        if what == "output":
            return None  # a runtime that fuses layers has no such tensor; what follows is compared
        return Difference(case, layer, what, None, "its codes", "none", expected.numel(), expected.numel())
    if got.shape != expected.shape:
        texts = (f"shape {tuple(expected.shape)}", f"shape {tuple(got.shape)}")
        return Difference(case, layer, what, None, *texts, expected.numel(), expected.numel())
    equal = _equal(expected, got)
    if not exact and not bool(equal.all()):
        equal |= (expected.double() - got.to(expected.device).double()).abs() <= rounding(expected)
    if bool(equal.all()):
        return None
    places = (~equal).nonzero()
    position = tuple(int(n) for n in places[0])
    return Difference(
        case, layer, what, position, expected[position].item(), got[position].item(), len(places), equal.numel()
    )


def _explanation(model: nn.Module, case: Case, first: Difference, shown: dict[str, Tensor]) -> tuple[bool, str]:
    """Whether rounding in float layers before explains a difference of codes, and that in words."""
    if first.what != "codes" or first.position is None:
        return False, ""
    modules, name = low_bit_modules(model), _module_name(first.layer)
    quantize = modules[name].input_quantizer
    assert isinstance(quantize, FakeQuantize)
    with _watching(model, modules[name], first.layer) as seen, torch.no_grad():
        model(*case.inputs)
    if not seen.floats:
        return False, "no float layer runs before it: this is no matter of rounding, the exported model is wrong"
    x, got = seen.inputs[0], shown[f"{first.layer}:codes"].to(seen.inputs[0].device)
    ends = [whole_numbers(quantize, x + sign * rounding(x)) for sign in (-1, 1)]
    outside = int(((got < ends[0]) | (got > ends[1])).sum())
    before = f"before it run the float layers {', '.join(seen.floats)}"
    if outside:
        return False, f"{before}, but {outside} codes lie too far from a tie for rounding to explain them"
    return True, f"{before}, and every code that differs lies within rounding of a tie: the order of a sum explains it"


@dataclass
class _Seen:
    floats: list[str] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)


@contextmanager
def _watching(model: nn.Module, target: nn.Module, layer: str) -> Iterator[_Seen]:
    """Within the block, in evaluation: which float layers run before that call of the target, and what it reads."""
    seen, calls = _Seen(), [0]
    wanted = int(layer.rpartition("#")[2]) if _module_name(layer) != layer else 1

    def ran(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if not seen.inputs and name not in seen.floats:
                seen.floats.append(name)

        return note

    def reads(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[0] += 1
        if calls[0] == wanted:
            seen.inputs.append((args[0] if args else kwargs["input"]).detach().clone())

    low_bit = {id(module): module for module in low_bit_modules(model).values()}
    hooks = [target.register_forward_pre_hook(reads, with_kwargs=True)]
    for name, module in model.named_modules():
        if isinstance(module, _SUMS) and not (id(module) in low_bit and _is_exact(module)):
            hooks.append(module.register_forward_hook(ran(plain_name(name))))
    try:
        with evaluating(model):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()
