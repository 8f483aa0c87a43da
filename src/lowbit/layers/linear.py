"""The low-bit linear layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lowbit.layers.product import product


class QuantLinear(nn.Linear):
    """`linear(Qa(x), Qw(weight), bias)`; parameters, names and shapes are those of `nn.Linear`.

    In evaluation the sum runs over whole numbers, without rounding: see `product`.

    Args:
        weight_quantizer: Qw, a `FakeQuantize`, or `nn.Identity()` to leave the weight in float.
        input_quantizer: Qa, likewise.
        args, kwargs: as for `nn.Linear`.
    """

    def __init__(self, *args: Any, weight_quantizer: nn.Module, input_quantizer: nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        return product(self, input, F.linear, self.in_features, -1)
