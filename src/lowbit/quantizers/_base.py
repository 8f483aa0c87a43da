"""The quantizer family: which discrete number does x become?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lowbit import _spec
from lowbit._errors import ConfigError
from lowbit._registry import Registry
from lowbit.quantizers.granularity import Granularity
from lowbit.quantizers.grid import Grid
from lowbit.quantizers.scale import Scale, max_abs, mean_abs


class AbstractQuantizer(nn.Module, ABC):
    """Maps real numbers to integer codes and back.

    For a block view x of a tensor: `s = scale(x)`, `z = normalize(x, s)` in step units, `codes = discretize(z)`,
    `values = dequantize(codes, s)`. Everything is ordinary autograd except `discretize`, the staircase: rounding and
    saturation together. What flows back through the staircase is the estimator's business, not the quantizer's.
    """

    policies: ClassVar[tuple[str, ...]]  # the scale policies this quantizer offers, the default first
    widths: ClassVar[tuple[int, ...]]  # the bit widths it offers
    signed: ClassVar[bool]  # whether it can stand for negative numbers
    rounding: ClassVar[Literal["round", "ceil"] | None]
    """Its values are s·clip(rounding(x·(1/s)), low, high); None where they are of another form. See `rounded`."""
    relative: ClassVar[bool]  # whether z depends on the other elements of x, whatever the scale policy
    rectifies: ClassVar[bool]  # whether it is an activation function itself: a ReLU that emits few values
    scaling: Scale

    @classmethod
    @abstractmethod
    def examples(cls) -> list[AbstractQuantizer]:
        """Instances that the contract suite runs over."""

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """The codes it may emit."""

    @property
    def granularity(self) -> Granularity:
        """Which elements share a scale."""
        return self.scaling.granularity

    @property
    def static(self) -> bool:
        """Whether Q(x) of one element does not depend on the others: a must for activations, whose batch varies."""
        return not self.relative and self.scaling.policy in ("none", "fixed", "fitted", "learned")

    @abstractmethod
    def scale(self, x: Tensor) -> Tensor:
        """The scale of a block view, broadcastable to it, positive."""

    @abstractmethod
    def normalize(self, x: Tensor, scale: Tensor) -> Tensor:
        """z: a block view in step units."""

    @abstractmethod
    def discretize(self, z: Tensor) -> Tensor:
        """The staircase: z to integer codes, in z's dtype. Ties: see each class."""

    @abstractmethod
    def dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The real values the codes stand for."""

    def integers(self, codes: Tensor) -> Tensor:
        """n, the whole numbers that inference computes with: the codes stand for `unit(scale)·n`."""
        return codes

    def unit(self, scale: Tensor) -> Tensor:
        """The real number that n is a multiple of; shape of the scale."""
        return scale

    @property
    def integer_grid(self) -> Grid:
        """The values that n may have."""
        return self.grid

    def forward(self, x: Tensor) -> Tensor:
        """Q(x): the discrete values, without any gradient through the staircase."""
        blocks = self.granularity.blocks(x)
        scale = self.scale(blocks)
        codes = self.discretize(self.normalize(blocks, scale).detach())
        return self.granularity.restore(self.dequantize(codes, scale), x)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """The integer codes of x (int16, shape of x)."""
        blocks = self.granularity.blocks(x)
        return self.granularity.restore(self.discretize(self.normalize(blocks, self.scale(blocks))), x).to(torch.int16)


class AbstractInteger(AbstractQuantizer):
    """Integers times a step size: `q = s·clip(round(z), low, high)`, `z = x·(1/s)`; ties go to the even code."""

    def _rule(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        if self.scaling.policy == "max-abs":
            largest = max_abs(x, dims)
            step = largest / self.grid.high
            # Rounding may put the largest element just past the end of the grid, where estimators cut the gradient.
            past = largest * step.reciprocal() > self.grid.high
            return torch.where(past, step * (1 + 2 * torch.finfo(step.dtype).eps), step)
        return 2 * mean_abs(x, dims) / self.grid.high**0.5

    def scale(self, x: Tensor) -> Tensor:
        """The step size s. Policy none: 1/high, so that the values fill [0, 1]."""
        if self.scaling.policy == "none":
            return x.new_full((), 1 / self.grid.high)
        return self.scaling(x, self._rule)

    def normalize(self, x: Tensor, scale: Tensor) -> Tensor:
        """z = x·(1/s)."""
        return x * scale.reciprocal()

    def discretize(self, z: Tensor) -> Tensor:
        """Saturate at the ends of the grid, round half to even."""
        return z.clamp(self.grid.low, self.grid.high).round_()

    def dequantize(self, codes: Tensor, scale: Tensor) -> Tensor:
        """s·c."""
        return codes * scale


QUANTIZERS: Registry[type[AbstractQuantizer]] = Registry("quantizer")


def build_quantizer(spec: str | AbstractQuantizer, bits: int, **context: Any) -> AbstractQuantizer:
    """A quantizer of `bits` bits from its spec string; an object passes through.

    Args:
        spec: a registered name, with options in brackets, for example `"sign(scale=mean-abs)"`.
        bits: the bit width asked for; must be one the quantizer offers.
        context: shape, axis, batched: passed on to quantizers that ask for them.

    Raises: UnknownNameError, ConfigError.
    """
    if isinstance(spec, AbstractQuantizer):
        return spec
    name, options = _spec.parse(spec)
    cls = QUANTIZERS.get(name)
    named = options.pop("bits", bits)
    if named != bits:
        raise ConfigError(f"quantizer '{spec}' names {named} bits, but {bits} were asked for; give one number")
    if bits not in cls.widths:
        widths = f"{min(cls.widths)} to {max(cls.widths)}" if len(cls.widths) > 1 else f"{cls.widths[0]}"
        others = ", ".join(n for n, c in QUANTIZERS.items() if bits in c.widths)
        raise ConfigError(
            f"quantizer '{name}' takes {widths} bits, {bits} were asked for; "
            f"quantizers for {bits} bits: {others or 'none (32 means: keep float)'}"
        )
    return _spec.call(f"quantizer '{name}'", cls, options, {"bits": bits, **context})


def check_policy(cls: type[AbstractQuantizer], policy: str) -> None:
    """Raises: ConfigError when the quantizer does not offer the scale policy."""
    if policy not in cls.policies:
        offered = ", ".join(cls.policies)
        raise ConfigError(f"{cls.__name__} offers the scale policies {offered}; '{policy}' was asked for")
