"""A quantizer and an estimator, put together: the module that every low-bit layer holds."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lowbit.estimators import AbstractEstimator, staircase
from lowbit.quantizers import AbstractQuantizer


class FakeQuantize(nn.Module):
    """x → Q(x) with the estimator's gradient; shapes are kept.

    Forward: `s·codes(x)` (see the quantizer). Backward: ordinary autograd through scaling, the estimator through the
    staircase. In evaluation the result is always the hard value.

    Args:
        quantizer: which values.
        estimator: which gradient. An annealed one starts at progress 0; `set_progress` moves it.
    """

    def __init__(self, quantizer: AbstractQuantizer, estimator: AbstractEstimator) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.rule = estimator
        self.estimator = estimator.at(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Q(x)."""
        quantizer = self.quantizer
        blocks = quantizer.granularity.blocks(x)
        scale = quantizer.scale(blocks)
        z = quantizer.normalize(blocks, scale)
        codes = staircase(z, quantizer, self.estimator)
        if self.training:
            codes = self.estimator.relax(z, codes, quantizer.grid)
        return quantizer.granularity.restore(quantizer.dequantize(codes, scale), x)

    def set_progress(self, progress: float) -> None:
        """Anneal the estimator: `progress` (0 to 1) of the training is done."""
        self.estimator = self.rule.at(progress)

    def extra_repr(self) -> str:
        """The estimator; the quantizer prints itself."""
        return repr(self.estimator)


def set_progress(model: nn.Module, progress: float) -> None:
    """Anneal every estimator in a model; call it at the start of each epoch with `epoch / epochs`."""
    for module in quantizers_of(model):
        module.set_progress(progress)


def quantizers_of(model: nn.Module) -> Iterator[FakeQuantize]:
    """Every FakeQuantize in a model, each once."""
    return (module for module in model.modules() if isinstance(module, FakeQuantize))
