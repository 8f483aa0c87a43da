"""What a low-bit layer does with its input and its weight, as attributes of ONNX operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lowbit.layers import QuantConvTranspose2d, QuantLinear

# padding_mode of torch → mode of ONNX's Pad; zeros are padded by the convolution itself
_PADS = {"zeros": "", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@dataclass(frozen=True)
class Geometry:
    """A linear map of input and weight.

    Args:
        kind: which map.
        groups: of a convolution.
        attributes: of the ONNX operation, without output_padding.
        pad: mode of a Pad before the convolution, which pads with zeros itself if this is empty.
        around: that Pad's pads, of all dimensions: all begins, then all ends.
    """

    kind: Literal["linear", "convolution", "transposed"]
    groups: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)
    pad: str = ""
    around: tuple[int, ...] = ()

    @staticmethod
    def of(layer: Any) -> Geometry:
        """The geometry of a low-bit layer."""
        if isinstance(layer, QuantLinear):
            return Geometry("linear")
        attributes: dict[str, Any] = {
            "kernel_shape": list(layer.kernel_size),
            "strides": list(layer.stride),
            "dilations": list(layer.dilation),
            "group": layer.groups,
        }
        if isinstance(layer, QuantConvTranspose2d):
            attributes["pads"] = [int(p) for p in layer.padding] * 2
            return Geometry("transposed", layer.groups, attributes)
        around = layer._reversed_padding_repeated_twice  # (begin, end) of the last dimension first
        pairs = [around[i : i + 2] for i in range(0, len(around), 2)][::-1]
        pads = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
        pad, sides = _PADS[layer.padding_mode], len(pairs)
        attributes["pads"] = [0] * len(pads) if pad else pads
        around = (0, 0, *pads[:sides], 0, 0, *pads[sides:]) if pad else ()
        return Geometry("convolution", layer.groups, attributes, pad, around)

    def stored(self, weight: Tensor) -> Tensor:
        """The weight in the layout of the operation: a linear layer's transposed."""
        return weight.t() if self.kind == "linear" and weight.ndim == 2 else weight

    def reach(self, whole: Tensor) -> float:
        """Σ|n_w| over what one output sums up, the largest: with |n_x| ≤ 1, no sum is larger."""
        weight = whole.abs().double()
        if self.kind == "transposed":
            return float(weight.reshape(self.groups, -1, *weight.shape[1:]).sum((1, 3, 4)).max())
        return float(weight.flatten(1).sum(1).max())

    def shape(self, layer: Any, x: Tensor, extra: Sequence[int]) -> tuple[int | torch.SymInt, ...]:
        """Shape of the layer's output.

        Args:
            layer: it.
            x: the input; with a batch.
            extra: a transposed convolution's output padding.
        """
        if self.kind == "linear":
            return (*x.shape[:-1], layer.out_features)
        sizes = []
        for d, (size, kernel) in enumerate(zip(x.shape[2:], layer.kernel_size, strict=True)):
            span, stride = layer.dilation[d] * (kernel - 1) + 1, layer.stride[d]
            if self.kind == "transposed":
                sizes.append((size - 1) * stride - 2 * layer.padding[d] + span + extra[d])
                continue
            pads = self.around or (
                0,
                0,
                *self.attributes["pads"][: x.ndim - 2],
                0,
                0,
                *self.attributes["pads"][x.ndim - 2 :],
            )
            sizes.append((size + pads[2 + d] + pads[2 + x.ndim + d] - span) // stride + 1)
        return (x.shape[0], layer.out_channels, *sizes)
