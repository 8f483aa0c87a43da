"""MobileNet: depthwise-separable convolutions."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from lowbit._errors import ConfigError
from lowbit.models._base import MODELS, check_counts

STEM = 32
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *5 * ((512, 1),), (1024, 2), (1024, 1))
"""Output channels and stride of each depthwise-separable block."""


@MODELS.register("mobilenet")
def mobilenet(num_classes: int = 10, in_channels: int = 3, multiplier: float = 1.0) -> nn.Module:
    """MobileNet: a 3×3 convolution, thirteen depthwise-separable blocks, global average pooling, linear classifier.

    A block is a 3×3 convolution of each channel by itself and a 1×1 convolution across channels; batch normalisation
    and a ReLU follow each of them. The image is halved five times. Convolutions start from the normal distribution of
    variance 2/fan_out [he2015delving], Eq. 14, where a depthwise one has a fan_out of 9.

    Shapes: images [B, in_channels, H, W] of any size, to logits [B, num_classes].

    Args:
        num_classes: number of outputs.
        in_channels: channels of an input image.
        multiplier: the width multiplier α: a layer of c channels has α·c, rounded, and at least one.

    Raises: ConfigError for a multiplier that is not positive, or a size that is not a whole number of at least 1.

    Source: [howard2017mobilenets], Table 1. Its last depthwise convolution, for which the table gives stride 2 and no
    smaller image, has stride 1.
    """
    check_counts("mobilenet", num_classes=num_classes, in_channels=in_channels)
    number = isinstance(multiplier, (int, float)) and not isinstance(multiplier, bool)
    if not number or not 0 < multiplier < math.inf:
        raise ConfigError(f"mobilenet: multiplier is {multiplier!r}; give a positive number, such as 0.5")
    before = _scaled(STEM, multiplier)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=_convolution(in_channels, before, 3, 2, 1), bn1=nn.BatchNorm2d(before), relu1=nn.ReLU(inplace=True)
    )
    for index, (channels, stride) in enumerate(BLOCKS, start=1):
        after = _scaled(channels, multiplier)
        layers[f"block{index}"] = _block(before, after, stride)
        before = after
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(before, num_classes)
    return nn.Sequential(layers)


def _scaled(channels: int, multiplier: float) -> int:
    return max(1, round(channels * multiplier))


def _block(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            depthwise=_convolution(in_channels, in_channels, 3, stride, in_channels),
            bn1=nn.BatchNorm2d(in_channels),
            relu1=nn.ReLU(inplace=True),
            pointwise=_convolution(in_channels, channels, 1, 1, 1),
            bn2=nn.BatchNorm2d(channels),
            relu2=nn.ReLU(inplace=True),
        )
    )


def _convolution(in_channels: int, channels: int, size: int, stride: int, groups: int) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, channels, size, stride=stride, padding=size // 2, groups=groups, bias=False)
    # torch's fan_out of a grouped convolution counts all groups
    nn.init.normal_(layer.weight, std=math.sqrt(2 * groups / (channels * size**2)))
    return layer
