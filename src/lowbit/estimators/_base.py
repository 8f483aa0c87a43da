"""The estimator family: what flows back through the staircase?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowbit import _spec
from lowbit._errors import ConfigError
from lowbit._registry import Registry
from lowbit.geometry import LNEMetric
from lowbit.quantizers import AbstractQuantizer, Grid


class AbstractEstimator(ABC):
    """A rule for the gradient of the staircase z → codes. Concrete estimators are frozen dataclasses.

    The class attributes declare what the rule is; the contract suite holds it to them.
    """

    linear_in_grad: ClassVar[bool]
    """vjp(z, a·g + b·h) = a·vjp(z, g) + b·vjp(z, h)."""
    elementwise: ClassVar[bool]
    """Each entry of the result depends on the same entry of z, codes and grad alone."""
    annealed: ClassVar[bool]
    """`at(progress)` changes the rule during training."""
    binary_only: ClassVar[bool]
    """Defined for the sign staircase alone."""
    one_sided_only: ClassVar[bool] = False
    """Defined only for staircases that rise from 0, as a quantized ReLU does."""
    roles: ClassVar[frozenset[str]]
    """Where it may be used: "weights", "activations"."""
    needs: ClassVar[frozenset[str]]
    """Which of "z" and "codes" the rule reads: only these are kept for the backward pass."""

    @classmethod
    @abstractmethod
    def examples(cls) -> list[AbstractEstimator]:
        """Instances that the contract suite runs over."""

    @abstractmethod
    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        """∂L/∂z from ∂L/∂codes.

        Args:
            z: the staircase's input, in step units.
            codes: its output, the same shape.
            grad: ∂L/∂codes, the same shape.
            grid: the codes that exist.
        """

    def window(self, grid: Grid) -> tuple[float, float] | None:
        """The interval of z, ends included, inside which the gradient passes unchanged and outside which it is 0.

        None for a rule of another form. Low-bit layers have a fast path for rules that declare a window.
        """
        return None

    def metric(self, z: Tensor, grid: Grid) -> LNEMetric | None:
        """The metric whose inverse `vjp` applies, at z, a row for each of its blocks: diagnostics look at it.

        None for a rule that has no metric.
        """
        return None

    def at(self, progress: float) -> AbstractEstimator:
        """The rule to use when `progress` (0 to 1) of the training is done; itself unless annealed."""
        return self

    def relax(self, z: Tensor, codes: Tensor, grid: Grid) -> Tensor:
        """What the forward pass emits in training: the codes, unless the method trains on relaxed values.

        An estimator that overrides this (soft rounding, sampling) returns a tensor that autograd can differentiate; its
        `vjp` is then not called.
        """
        return codes


ESTIMATORS: Registry[type[AbstractEstimator]] = Registry("estimator")


class _Staircase(torch.autograd.Function):
    """Identity on the codes in the forward pass, the estimator's rule in the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, codes: Tensor, estimator: AbstractEstimator, grid: Grid) -> Tensor:
        return codes.view_as(codes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, codes, estimator, grid = inputs
        ctx.estimator, ctx.grid = estimator, grid
        ctx.save_for_backward(
            z if "z" in estimator.needs else None,
            codes if "codes" in estimator.needs else None,
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        z, codes = ctx.saved_tensors
        return ctx.estimator.vjp(z, codes, grad, ctx.grid), None, None, None


def staircase(z: Tensor, quantizer: AbstractQuantizer, estimator: AbstractEstimator) -> Tensor:
    """The codes of z, with the estimator's gradient.

    Forward: `codes = quantizer.discretize(z)`. Backward: `estimator.vjp(z, codes, grad, quantizer.grid)`.
    """
    # Detached, not under no_grad: a no_grad block would leave a wrapper in an exported graph.
    codes = quantizer.discretize(z.detach())
    result: Tensor = _Staircase.apply(z, codes, estimator, quantizer.grid)  # type: ignore[no-untyped-call]
    return result


def build_estimator(spec: str | AbstractEstimator) -> AbstractEstimator:
    """An estimator from its spec string, for example `"ewgs(delta=0.01)"`; an object passes through.

    Raises: UnknownNameError, ConfigError.
    """
    if isinstance(spec, AbstractEstimator):
        return spec
    name, options = _spec.parse(spec)
    return _spec.call(f"estimator '{name}'", ESTIMATORS.get(name), options)


def check_pair(estimator: AbstractEstimator, quantizer: AbstractQuantizer, role: str) -> None:
    """Raises: ConfigError when the estimator is not defined for that quantizer or that role."""
    name = ESTIMATORS.name_of(type(estimator), default=type(estimator).__name__)
    binary, one_sided = quantizer.grid.binary, quantizer.grid.one_sided
    usable = ", ".join(
        n
        for n, c in ESTIMATORS.items()
        if role in c.roles and (binary or not c.binary_only) and (one_sided or not c.one_sided_only)
    )
    if estimator.one_sided_only and not one_sided:
        raise ConfigError(
            f"estimator '{name}' is defined for staircases that rise from 0 (quantizers 'staircase', 'unsigned'), the "
            f"{role} have codes from {quantizer.grid.low} to {quantizer.grid.high}; estimators for them: {usable}"
        )
    if estimator.binary_only and not binary:
        raise ConfigError(
            f"estimator '{name}' is defined for the sign quantizer only, the {role} have {quantizer.grid.count} "
            f"levels; estimators for them: {usable}"
        )
    if role not in estimator.roles:
        raise ConfigError(f"estimator '{name}' does not act on {role}; estimators that do: {usable}")
