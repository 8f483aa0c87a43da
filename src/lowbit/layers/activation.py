"""The quantized activation function: a low-bit staircase in the place of a ReLU."""

from __future__ import annotations

from torch import Tensor, nn

from lowbit.layers.fake_quantize import FakeQuantize


class QuantReLU(nn.Module):
    """`Q(x)` with a quantizer that rectifies; it stands where an `nn.ReLU` stood.

    Where a `QuantConv2d` quantizes its own input, this one emits few values to whatever follows: the next layer, a
    pooling, a residual sum. It is the quantized ReLU of [yin2019understanding] and [long2021coarse]; the estimator
    alone decides what flows back for negative x, which a ReLU in front of the quantizer would stop.

    Args:
        input_quantizer: Q, a `FakeQuantize`.
    """

    input_quantizer: FakeQuantize

    def __init__(self, input_quantizer: FakeQuantize) -> None:
        super().__init__()
        self.input_quantizer = input_quantizer

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, kept."""
        result: Tensor = self.input_quantizer(input)
        return result
