"""Residual networks of the ImageNet form."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from lowbit.models._base import MODELS, check_counts
from lowbit.models.resnet_cifar import BasicBlock


class ResNet(nn.Module):
    """A 7×7 convolution and a max-pool, four stages of basic blocks, global average pooling and a linear classifier.

    The stages have `width`, 2·`width`, 4·`width` and 8·`width` channels. The stem's convolution and its 3×3 max-pool
    halve the image, and so does every stage but the first, at whose shortcut stands a 1×1 convolution (option B).
    Convolutions start from the normal distribution of variance 2/fan_out [he2015delving], Eq. 14.

    Shapes: images [B, in_channels, H, W] of any size, to logits [B, num_classes].

    Raises: ConfigError for a size that is not a whole number of at least 1.

    Source: [he2016resnet], Table 1.
    """

    def __init__(self, blocks: Sequence[int], num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        check_counts("resnet", num_classes=num_classes, in_channels=in_channels, width=width)
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage1 = _stage(blocks[0], width, width, 1)
        self.stage2 = _stage(blocks[1], width, 2 * width, 2)
        self.stage3 = _stage(blocks[2], 2 * width, 4 * width, 2)
        self.stage4 = _stage(blocks[3], 4 * width, 8 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes] of the images `x`."""
        out = self.pool1(self.relu1(self.bn1(self.conv1(x))))
        out = self.stage4(self.stage3(self.stage2(self.stage1(out))))
        logits: torch.Tensor = self.classifier(self.flatten(self.pool(out)))
        return logits


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, "B")
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, "B") for _ in range(blocks - 1)))


def _of_depth(depth: int, blocks: Sequence[int]) -> Callable[..., nn.Module]:
    def factory(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> nn.Module:
        return ResNet(blocks, num_classes, in_channels, width)

    factory.__name__ = factory.__qualname__ = f"resnet{depth}"
    factory.__doc__ = f"""Residual network of {depth} layers for large images, in the ImageNet form.

    Args:
        num_classes: number of outputs.
        in_channels: channels of an input image.
        width: channels of the first stage; the others have two, four and eight times as many.

    Raises: ConfigError for a size that is not a whole number of at least 1.

    Source: [he2016resnet], Table 1. See `ResNet`.
    """
    return MODELS.register(f"resnet{depth}")(factory)


resnet18 = _of_depth(18, (2, 2, 2, 2))
resnet34 = _of_depth(34, (3, 4, 6, 3))
