"""Low-bit convolutions: torch's own, with the weight and the input read through a quantizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lowbit.layers.product import product


class QuantConv1d(nn.Conv1d):
    """`conv1d(Qa(x), Qw(weight), bias)`; parameters, names and shapes are those of `nn.Conv1d`.

    Zero padding adds the real number 0, also where 0 is not a level. `weight` is the latent weight. In evaluation the
    sum runs over whole numbers, without rounding: see `product`.

    Args:
        weight_quantizer: Qw, a `FakeQuantize`, or `nn.Identity()` to leave the weight in float.
        input_quantizer: Qa, likewise.
        args, kwargs: as for `nn.Conv1d`.
    """

    def __init__(self, *args: Any, weight_quantizer: nn.Module, input_quantizer: nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) → (N, C', L')."""
        return product(self, input, self._conv_forward, self.weight[0].numel(), -2)


class QuantConv2d(nn.Conv2d):
    """`conv2d(Qa(x), Qw(weight), bias)`; see `QuantConv1d`."""

    def __init__(self, *args: Any, weight_quantizer: nn.Module, input_quantizer: nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W')."""
        return product(self, input, self._conv_forward, self.weight[0].numel(), -3)


class QuantConv3d(nn.Conv3d):
    """`conv3d(Qa(x), Qw(weight), bias)`; see `QuantConv1d`."""

    def __init__(self, *args: Any, weight_quantizer: nn.Module, input_quantizer: nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, D, H, W) → (N, C', D', H', W')."""
        return product(self, input, self._conv_forward, self.weight[0].numel(), -4)


class QuantConvTranspose2d(nn.ConvTranspose2d):
    """`conv_transpose2d(Qa(x), Qw(weight), bias)`; see `QuantConv1d`. The output channel is axis 1 of the weight."""

    def __init__(self, *args: Any, weight_quantizer: nn.Module, input_quantizer: nn.Module, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, H, W) → (N, C', H', W')."""
        padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            2,
            self.dilation,  # type: ignore[arg-type]
        )

        def spread(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.conv_transpose2d(
                x,
                weight,
                bias,
                self.stride,
                self.padding,  # type: ignore[arg-type]
                padding,
                self.groups,
                self.dilation,
            )

        return product(self, input, spread, self.weight[:, 0].numel() // self.groups, -3)
