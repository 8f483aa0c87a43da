"""MD-tanh: mirror descent whose mirror map is a tanh that sharpens into the sign."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators._base import ESTIMATORS, AbstractEstimator
from lowbit.quantizers import Grid


@ESTIMATORS.register("md-tanh")
@dataclass(frozen=True)
class MDTanh(AbstractEstimator):
    """Train on tanh(β·z) in place of sign(z), with β raised during training until the two are one.

    Forward: `tanh(β·z)` in training, the codes in evaluation (times the quantizer's scale in both), z in units of x.
    Backward, with g = ∂L/∂tanh(β·z) in training and ∂L/∂codes in evaluation:

    - form `dual`, MD-tanh-S of the paper: `∂L/∂z = g`. The latent weight is the dual variable of the primal weight
      p = tanh(β·z). A step of plain SGD with rate η at constant β is the paper's mirror descent of p,
      `p ← ((1 + p)·e^(−2ηβg) − (1 − p)) / ((1 + p)·e^(−2ηβg) + (1 − p))`, without the overflow that p itself runs into.
    - form `gradient`, its baseline GD-tanh: `∂L/∂z = g·β·(1 − tanh²(β·z))`, the chain rule.

    β grows exponentially: `β = beta·(beta_end/beta)^progress`. The authors multiply it by 1.01 to 1.2 every 100 to 2000
    of 100 000 steps, so that it ends between 10⁴ and 10¹⁶, tuned for each network. Between two calls of `set_progress`
    β is constant: `lowbit train` calls it once per epoch, so a run of a few epochs goes in a few big steps. The authors
    train all parameters so, with Adam at 10⁻³ and no weight decay; here it is the low-bit weights. Weight decay would
    act on the dual variable.

    Args:
        form: dual or gradient.
        beta: β at the start of training (1).
        beta_end: β at its end (10⁴).
        progress: the share of the training that is done; `at` sets it.

    Source: [ajanthan2021mirror]; the formulas and the schedule as in the authors' code, progress in place of steps is
    ours.
    """

    form: Literal["dual", "gradient"] = "dual"
    beta: float = 1.0
    beta_end: float = 1e4
    progress: float = 0.0

    linear_in_grad = True
    elementwise = True
    annealed = True
    binary_only = True
    roles = frozenset({"weights"})
    needs = frozenset({"z"})

    def __post_init__(self) -> None:
        if self.form not in ("dual", "gradient"):
            raise ConfigError(f"form={self.form!r} of estimator 'md-tanh' must be dual or gradient")
        for option, value in (("beta", self.beta), ("beta_end", self.beta_end)):
            if not 0 < value < float("inf"):
                raise ConfigError(f"{option}={value} of estimator 'md-tanh' must be a number above 0")
        if not 0 <= self.progress <= 1:
            raise ConfigError(f"progress={self.progress} of estimator 'md-tanh' must lie between 0 and 1")

    @classmethod
    def examples(cls) -> list[AbstractEstimator]:
        """Both forms; the second also in the middle of training."""
        return [cls(), cls(form="gradient"), cls(form="gradient", progress=0.5)]

    @property
    def sharpness(self) -> float:
        """β now."""
        return float(self.beta * (self.beta_end / self.beta) ** self.progress)

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        """`grad`, or `grad·β·(1 − tanh²(β·z))`: what holds where the forward pass emits the codes, in evaluation."""
        return grad * self._slope(z)

    def _slope(self, z: Tensor) -> Tensor:
        if self.form == "dual":
            return torch.ones_like(z)
        t = torch.tanh(self.sharpness * z)
        return self.sharpness * (1 - t * t)

    def at(self, progress: float) -> MDTanh:
        """The same rule with β = beta·(beta_end/beta)^progress."""
        return replace(self, progress=progress)

    def relax(self, z: Tensor, codes: Tensor, grid: Grid) -> Tensor:
        """`tanh(β·z)`, with the gradient that `form` says."""
        if self.form == "gradient":
            return torch.tanh(self.sharpness * z)
        result: Tensor = _Dual.apply(z, self.sharpness)  # type: ignore[no-untyped-call]
        return result


class _Dual(torch.autograd.Function):
    """Forward: tanh(β·z). Backward: the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, beta: float) -> Tensor:
        return torch.tanh(beta * z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept for the backward pass."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
