"""A quantizer and an estimator, put together: the module that every low-bit layer holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lowbit._errors import ConfigError
from lowbit.estimators import AbstractEstimator, staircase
from lowbit.layers import fused
from lowbit.quantizers import AbstractQuantizer, PerGroup, PerTensor

_log = logging.getLogger("lowbit")

FAST_FROM = 1 << 16  # elements from which the fast path's bookkeeping pays


class FakeQuantize(nn.Module):
    """x → Q(x) with the estimator's gradient; shapes are kept.

    Forward: `s·codes(x)` (see the quantizer). Backward: ordinary autograd through scaling, the estimator through the
    staircase. In evaluation the result is always the hard value.

    Args:
        quantizer: which values.
        estimator: which gradient. An annealed one starts at progress 0; `set_progress` moves it.
        name: what to call it in a message.
    """

    def __init__(self, quantizer: AbstractQuantizer, estimator: AbstractEstimator, name: str = "") -> None:
        super().__init__()
        self.quantizer = quantizer
        self.rule = estimator
        self.estimator = estimator.at(0.0)
        self.name = name
        self._looked = False
        hard = type(estimator).relax is AbstractEstimator.relax  # the fast path emits nothing but hard values
        self._fusable = quantizer.rounding is not None and quantizer.granularity == PerTensor() and hard

    def forward(self, x: Tensor) -> Tensor:
        """Q(x). Half-precision inputs are quantized in float32, so that their codes are those float32 would give."""
        if x.dtype in (torch.bfloat16, torch.float16):
            return self._quantize(x.float()).to(x.dtype)
        return self._quantize(x)

    def _quantize(self, x: Tensor) -> Tensor:
        quantizer = self.quantizer
        if not self._looked and fused.eager():
            self._look(x)
        window = self.fast_window(x)
        if window is not None:
            up = quantizer.rounding == "ceil"
            return fused.fake_quantize(x, quantizer.scale(x), quantizer.grid, up, window, self._generic)
        blocks = quantizer.granularity.blocks(x)
        scale = quantizer.scale(blocks)
        return quantizer.granularity.restore(self._generic(blocks, scale), x)

    def _generic(self, blocks: Tensor, scale: Tensor) -> Tensor:
        z = self.quantizer.normalize(blocks, scale)
        codes = staircase(z, self.quantizer, self.estimator)
        if self.training:
            codes = self.estimator.relax(z, codes, self.quantizer.grid)
        return self.quantizer.dequantize(codes, scale)

    def fast_window(self, x: Tensor) -> fused.Window | None:
        """The estimator's window if `forward` takes the fast path for x, else None."""
        if not (self._fusable and x.numel() >= FAST_FROM and fused.fits(x)):
            return None
        return self.estimator.window(self.quantizer.grid)

    @torch.no_grad()
    def _look(self, x: Tensor) -> None:
        """Say so, once, when an unsigned quantizer meets negative inputs: it would silently drop them."""
        self._looked = True
        negative = 0.0 if self.quantizer.signed or self.quantizer.rectifies else float((x < 0).float().mean())
        if negative:
            _log.warning(
                "%s: %.0f %% of the values are negative and become 0, because its quantizer is unsigned; "
                "for inputs that do not come from a ReLU take activation_quantizer='lsq' (or 'sign' for 1 bit)",
                self.name or "a quantizer",
                100 * negative,
            )

    @torch.no_grad()
    def integers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Q(x) as whole numbers and what they are multiples of: Q(x) = unit·n.

        Returns:
            n: float32 (float64 for such an x), shape of x; the quantizer's `integer_grid` bounds it.
            unit: shape () or, with granularity channel, 1 along every dimension but the channels.

        Raises: ConfigError when scales belong to groups of weights.
        """
        if isinstance(self.quantizer.granularity, PerGroup):
            raise ConfigError("weights with a scale per group are not multiples of one number per channel")
        if x.dtype in (torch.bfloat16, torch.float16):
            x = x.float()
        if not self._looked and fused.eager():
            self._look(x)
        scale = self.quantizer.scale(x)
        codes = self.quantizer.discretize(self.quantizer.normalize(x, scale))
        return self.quantizer.integers(codes), self.quantizer.unit(scale)

    def set_progress(self, progress: float) -> None:
        """Anneal the estimator: `progress` (0 to 1) of the training is done."""
        self.estimator = self.rule.at(progress)

    def extra_repr(self) -> str:
        """The estimator; the quantizer prints itself."""
        return repr(self.estimator)


def set_progress(model: nn.Module, progress: float) -> None:
    """Anneal every estimator in a model; call it at the start of each epoch with `epoch / (epochs - 1)`.

    Raises: ConfigError when `progress` is not between 0 and 1.
    """
    if not 0 <= progress <= 1:
        raise ConfigError(f"set_progress takes the share of the training that is done, 0 to 1; {progress} was given")
    for module in quantizers_of(model):
        module.set_progress(progress)


def anneals(model: nn.Module) -> bool:
    """Whether `set_progress` changes anything in the model."""
    return any(module.rule.annealed for module in quantizers_of(model))


def quantizers_of(model: nn.Module) -> Iterator[FakeQuantize]:
    """Every FakeQuantize in a model, each once."""
    return (module for module in model.modules() if isinstance(module, FakeQuantize))
