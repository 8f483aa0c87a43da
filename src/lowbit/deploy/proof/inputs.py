"""Inputs made to hurt: where two runtimes that agree on images are most likely to disagree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lowbit.deploy.proof.observe import Inputs, as_arguments, low_bit_modules, observe
from lowbit.layers import FakeQuantize

LARGE = 1e6  # times the example's largest value: far beyond the last level, far from overflow
TINY = 1e-30  # far below the first tie; products of two are no longer normal numbers


@dataclass(frozen=True)
class Case:
    """One call of a model.

    Args:
        name: what is special about it.
        inputs: the positional arguments.
    """

    name: str
    inputs: tuple[Any, ...]


def adversarial_inputs(model: nn.Module, example: Inputs, seed: int = 0) -> list[Case]:
    """Calls like `example`, with values made to hurt: all equal, extreme, on ties, noise; one by one and in one batch.

    Ties are those of the first quantizer of an activation that runs: k·s and (k + 1/2)·s for each of its codes, and
    numbers right before and after. Float tensors are filled anew; integers, which may be indices, are permuted;
    anything else stays.

    Args:
        model: a converted model; it is left as it was.
        example: a call that it takes. Where the first tensor has two or more dimensions, its first is the batch; there
            the cases come one example at a time, then all together in one batch.
        seed: of noise and permutations.
    """
    arguments = as_arguments(example)
    generator = torch.Generator().manual_seed(seed)
    size = _batch(arguments)
    one = arguments if size is None else tuple(_first(a, size) for a in arguments)
    ties = _ties(model, example)
    cases = []
    for name, fill in _FILLS.items():
        made = _Maker(fill, ties, generator, size)
        cases.append(Case(name, tuple(made(given, short) for given, short in zip(arguments, one, strict=True))))
    if size is not None:
        calls = [case.inputs for case in cases]
        together = tuple(
            torch.cat([call[place] for call in calls]) if _batched(given, size) else given
            for place, given in enumerate(arguments)
        )
        cases.append(Case("all of these in one batch", together))
    return cases


def _batch(arguments: tuple[Any, ...]) -> int | None:
    first = next((a for a in arguments if isinstance(a, Tensor)), None)
    return None if first is None or first.ndim < 2 else first.shape[0]


def _batched(given: Any, size: int | None) -> bool:
    return isinstance(given, Tensor) and given.ndim > 0 and given.shape[0] == size


def _first(given: Any, size: int) -> Any:
    return given[:1] if _batched(given, size) else given


_Fill: TypeAlias = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class _Maker:
    """Makes the arguments of one case."""

    fill: _Fill
    ties: Tensor
    generator: torch.Generator
    size: int | None

    def __call__(self, given: Any, short: Any) -> Any:
        """An argument of the shape of `short`, with values of the order of those of `given`."""
        if not isinstance(given, Tensor) or (self.size is not None and not _batched(given, self.size)):
            return given
        if given.is_floating_point():
            largest = float(given.abs().max()) if given.numel() else 0.0
            level = torch.full(short.shape, largest if 0 < largest < torch.inf else 1.0, dtype=torch.float64)
            finite = torch.finfo(given.dtype)
            values = self.fill(level, self.ties, self.generator).clamp(finite.min, finite.max)
            return values.to(given.dtype).to(given.device)
        if given.dtype == torch.bool or given.is_complex():
            return short
        order = torch.randperm(given.numel(), generator=self.generator).to(given.device)
        return given.reshape(-1)[order][: short.numel()].reshape(short.shape)


def _signs(like: Tensor) -> Tensor:
    return (1 - 2 * (torch.arange(like.numel(), dtype=torch.float64) % 2)).reshape(like.shape)


def _ramp(like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, like.numel(), dtype=torch.float64).reshape(like.shape) * like


def _cycled(values: Tensor, like: Tensor) -> Tensor:
    places = torch.arange(like.numel()) % values.numel()
    return values[places].reshape(like.shape)


def _drawn(values: Tensor, like: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randint(values.numel(), like.shape, generator=generator)]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64) * like


def _impulse(like: Tensor) -> Tensor:
    result = torch.zeros_like(like)
    result.reshape(-1)[like.numel() // 2 :][:1] = like.reshape(-1)[:1]
    return result


# Each gets a tensor full of the example's largest magnitude, the ties, and a generator.
_FILLS: dict[str, _Fill] = {
    "all 0": lambda x, ties, g: torch.zeros_like(x),
    "all −0": lambda x, ties, g: -torch.zeros_like(x),
    "all 1": lambda x, ties, g: torch.ones_like(x),
    "all the largest value": lambda x, ties, g: x,
    "all minus the largest value": lambda x, ties, g: -x,
    "all extreme": lambda x, ties, g: LARGE * x,
    "all minus extreme": lambda x, ties, g: -LARGE * x,
    "alternating signs": lambda x, ties, g: _signs(x) * x,
    "alternating extremes": lambda x, ties, g: _signs(x) * LARGE * x,
    "tiny, alternating signs": lambda x, ties, g: _signs(x) * TINY,
    "a ramp": lambda x, ties, g: _ramp(x),
    "one value, the rest 0": lambda x, ties, g: _impulse(x),
    "on ties, in order": lambda x, ties, g: _cycled(ties, x),
    "on ties, drawn": lambda x, ties, g: _drawn(ties, x, g),
    "noise": lambda x, ties, g: _normal(x, g) / 3,
    "wide noise": lambda x, ties, g: 100 * _normal(x, g),
}


def _ties(model: nn.Module, example: Inputs) -> Tensor:
    """Where the first quantizer of an activation changes its code, and the neighbours of these numbers, float64."""
    modules = low_bit_modules(model)
    entries = observe(model, example).entries
    first = next((modules[entry.layer].input_quantizer for entry in entries if entry.what == "codes"), None)
    if not isinstance(first, FakeQuantize):
        return torch.zeros(1, dtype=torch.float64)
    grid = first.quantizer.grid
    with torch.no_grad():
        scale = first.quantizer.scale(torch.ones(1, 1)).detach().float().reshape(-1)[:1].cpu()
    steps = torch.arange(2 * grid.low - 2, 2 * grid.high + 3) / 2
    exact = steps * scale
    up, down = (torch.nextafter(exact, torch.full_like(exact, end)) for end in (torch.inf, -torch.inf))
    # x·(1/s) may round the very next number back onto the tie.
    further = [exact * (1 + side * 2.0**-21) for side in (-1, 1)]
    return torch.cat([exact, up, down, *further]).double()
