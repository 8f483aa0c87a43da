"""What a converted model computes on its way: the codes that each low-bit layer reads, and what it makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lowbit.deploy.evaluating import evaluating
from lowbit.layers import FakeQuantize, QuantReLU, plain_name, quant_layers

Inputs: TypeAlias = Tensor | tuple[Any, ...]
"""One call's positional arguments; a lone tensor stands for a tuple of one."""

NO_CODE = -(2**15)
"""What `codes` hold where the input was not a number."""


@dataclass(frozen=True)
class Entry:
    """One tensor that one call of one low-bit layer read or made.

    Args:
        layer: the layer's name; from its second call within one run on, with a number: "name#2".
        what: "codes" are the whole numbers n of its quantized input, int16; "output" is what it returned.
        value: the tensor.
    """

    layer: str
    what: Literal["codes", "output"]
    value: Tensor

    @property
    def key(self) -> str:
        """`"layer:codes"` or `"layer:output"`."""
        return f"{self.layer}:{self.what}"


@dataclass(frozen=True)
class Trace:
    """What one run of a model showed.

    Args:
        entries: in the order of execution; a layer's codes come right before what it, or a layer within it, returned.
        outputs: the tensors that the model returned, those of tuples and mappings one by one.
    """

    entries: tuple[Entry, ...]
    outputs: tuple[Tensor, ...]

    def tensors(self) -> dict[str, Tensor]:
        """The entries by key, in the order of execution."""
        return {entry.key: entry.value for entry in self.entries}


def observe(model: nn.Module, inputs: Inputs) -> Trace:
    """Run a model once, in evaluation and without gradients, and record what its low-bit layers read and return.

    A layer that quantizes its input gives its codes, then its output; one whose weight alone is low-bit gives its
    output; a `QuantReLU` gives its codes and the values they stand for. The model is left as it was.

    Args:
        model: a converted (or loaded) model.
        inputs: a tensor, or a tuple of the model's positional arguments.
    """
    entries: list[Entry] = []
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        if any("_orig_mod" in name for name, _ in model.named_modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code would pass the hooks by
        for name, layer in low_bit_modules(model).items():
            stack.enter_context(_recording(name, layer, entries))
        stack.enter_context(torch.no_grad())
        result = model(*as_arguments(inputs))
    return Trace(tuple(entries), tuple(t.detach().clone() for t in flatten(result)))


def as_arguments(inputs: Inputs) -> tuple[Any, ...]:
    """The positional arguments that `inputs` means."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def low_bit_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every low-bit layer and quantized ReLU by name, each once, without what wrappers put before the name."""
    found: dict[str, nn.Module] = dict(quant_layers(model))
    found |= {name: module for name, module in model.named_modules() if isinstance(module, QuantReLU)}
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return {plain_name(name): found[name] for name in sorted(found, key=order.__getitem__)}


def flatten(result: Any) -> Iterator[Tensor]:
    """The tensors of whatever a model returned: a tensor, or tuples, lists and mappings of such."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from flatten(value)
    elif isinstance(result, list | tuple):
        for value in result:
            yield from flatten(value)


def whole_numbers(quantize: FakeQuantize, x: Tensor) -> Tensor:
    """n of Q(x) = unit·n, int16; `NO_CODE` where x is not a number."""
    n, _ = quantize.integers(x)
    return torch.nan_to_num(n, nan=NO_CODE).to(torch.int16)


@contextmanager
def _recording(name: str, layer: nn.Module, entries: list[Entry]) -> Iterator[None]:
    """Within the block each call of the layer adds its entries."""
    calls: list[str] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(name if not calls else f"{name}#{len(calls) + 1}")
        quantize = module.input_quantizer
        if isinstance(quantize, FakeQuantize):
            entries.append(Entry(calls[-1], "codes", whole_numbers(quantize, args[0] if args else kwargs["input"])))

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        # A copy: what follows may write over it, as an in-place ReLU does.
        entries.append(Entry(calls[-1], "output", output.detach().clone()))

    hooks = [
        layer.register_forward_pre_hook(before, with_kwargs=True),
        layer.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
