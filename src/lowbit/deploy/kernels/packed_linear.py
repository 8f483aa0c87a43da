"""Linear layers with few-bit weights and float inputs, on the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowbit.deploy.kernels.loader import kernels
from lowbit.layers import FakeQuantize, QuantLinear
from lowbit.quantizers import PerGroup

WIDEST = 4  # bits that the kernels unpack


class PackedLinear(nn.Module):
    """`y = unit·Σ x·n + bias`, the whole numbers n stored in as many bits as they need.

    For one example at a time a linear layer costs what reading its weights costs. The sum runs in float32, in an order
    of its own, the same for every batch size and number of threads: results differ from PyTorch's by rounding.

    Args:
        layer: a low-bit layer whose input is float; see `packs`.
        threads: of the kernel.

    Source: ours, not from a paper.
    """

    numbers: Tensor
    unit: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantLinear, threads: int) -> None:
        super().__init__()
        quantize = layer.weight_quantizer
        assert isinstance(quantize, FakeQuantize)
        numbers, unit = quantize.integers(layer.weight.detach())
        self.register_buffer("numbers", numbers.to(torch.int8))
        self.register_buffer("unit", unit.detach().float().reshape(-1).expand(layer.out_features).contiguous())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        grid = quantize.quantizer.integer_grid
        self.grid = grid.bits, grid.low, grid.step
        self.threads = threads
        self._kernel: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the kernel, which is made anew."""
        return {**self.__dict__, "_kernel": None}

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out), float32 on the CPU by the kernel, anything else by PyTorch."""
        module = kernels()
        if module is None or x.dtype != torch.float32 or x.device.type != "cpu":
            weight = self.numbers.to(x.dtype) * self.unit.to(x.dtype)[:, None]
            return F.linear(x, weight, self.bias)
        if self._kernel is None:
            bias = None if self.bias is None else self.bias.numpy()
            self._kernel = module.FloatLinear(self.numbers.numpy(), *self.grid, self.unit.numpy(), bias, self.threads)
        if x.shape[-1] != self.numbers.shape[1]:
            raise RuntimeError(f"an input of {x.shape[-1]} features met a layer that takes {self.numbers.shape[1]}")
        rows = x.reshape(-1, x.shape[-1]).contiguous().resolve_neg()
        y = torch.empty(rows.shape[0], self.numbers.shape[0], dtype=torch.float32, device="cpu")
        self._kernel.run(rows.data_ptr(), rows.shape[0], y.data_ptr())
        return y.reshape(*x.shape[:-1], -1)

    def extra_repr(self) -> str:
        """Shape and bits."""
        outputs, inputs = self.numbers.shape
        return f"in_features={inputs}, out_features={outputs}, bits={self.grid[0]}"


def packs(layer: nn.Module) -> bool:
    """Whether a layer has weights of 1 to 4 bits with one unit per output (or one for all), and a float input."""
    if type(layer) is not QuantLinear or isinstance(layer.input_quantizer, FakeQuantize):
        return False
    quantize = layer.weight_quantizer
    if not isinstance(quantize, FakeQuantize) or layer.weight.dtype != torch.float32:
        return False
    quantizer = quantize.quantizer
    grouped = isinstance(quantizer.granularity, PerGroup)
    return not grouped and quantizer.integer_grid.bits <= WIDEST and kernels() is not None
