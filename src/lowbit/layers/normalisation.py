"""Batch normalisation with a fixed arithmetic in evaluation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def affine(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """The slope α and the offset β of a batch normalisation in evaluation, one of each per channel.

    `α = γ·(1/√(σ² + ε))`, `β = b − μ·α`, each operation rounded to the dtype.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    slope = 1 / torch.sqrt(norm.running_var + norm.eps)
    slope = slope if norm.weight is None else norm.weight * slope
    offset = norm.running_mean * slope
    return slope, -offset if norm.bias is None else norm.bias - offset


def _evaluate(norm: nn.modules.batchnorm._BatchNorm, input: Tensor) -> Tensor:
    slope, offset = affine(norm)
    shape = (-1, *[1] * (input.ndim - 2))
    return (input.to(slope.dtype) * slope.reshape(shape) + offset.reshape(shape)).to(input.dtype)


class ExactBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d`; in evaluation `y = x·α + β` in two roundings, product and sum, whatever the processor.

    torch's own evaluation uses one rounding (a fused multiply-add) where the processor offers it and two elsewhere, so
    that the codes behind it would depend on the machine. Parameters, buffers and training are `nn.BatchNorm1d`'s.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C) or (N, C, L), kept."""
        if self.training or self.running_mean is None:
            return super().forward(input)
        self._check_input_dim(input)
        return _evaluate(self, input)


class ExactBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`; see `ExactBatchNorm1d`."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W), kept."""
        if self.training or self.running_mean is None:
            return super().forward(input)
        self._check_input_dim(input)
        return _evaluate(self, input)


class ExactBatchNorm3d(nn.BatchNorm3d):
    """`nn.BatchNorm3d`; see `ExactBatchNorm1d`."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, D, H, W), kept."""
        if self.training or self.running_mean is None:
            return super().forward(input)
        self._check_input_dim(input)
        return _evaluate(self, input)


NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: ExactBatchNorm1d,
    nn.BatchNorm2d: ExactBatchNorm2d,
    nn.BatchNorm3d: ExactBatchNorm3d,
}
