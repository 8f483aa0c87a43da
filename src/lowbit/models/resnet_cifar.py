"""Residual networks for small images, of depth 6n + 2."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from lowbit._errors import ConfigError
from lowbit.models._base import MODELS, check_counts


class PadShortcut(nn.Module):
    """The parameter-free shortcut (option A): every `stride`-th pixel, then zeros for the channels that are missing.

    Shapes: [B, C, H, W] to [B, C + extra, ⌈H/stride⌉, ⌈W/stride⌉].

    Source: [he2016resnet], Sec. 3.3 and 4.2.
    """

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra = extra
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The subsampled input followed by `extra` channels of zeros."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut.

    Forward: relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)).

    Shapes: [B, in_channels, H, W] to [B, channels, ⌈H/stride⌉, ⌈W/stride⌉].

    Source: [he2016resnet], Fig. 5 (left).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        # In place is safe: neither a batch normalisation nor a sum keeps its result for the backward pass.
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride, shortcut)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: torch.Tensor = self.relu2(out + self.shortcut(x))
        return result


class ResNetCifar(nn.Module):
    """A 3×3 convolution, three stages of `blocks` basic blocks, global average pooling and a linear classifier.

    The stages have `width`, 2·`width` and 4·`width` channels; the second and third halve the image. With `blocks` = n
    the depth is 6n + 2. Convolutions start from the normal distribution of variance 2/fan_out [he2015delving], Eq. 14.

    Shapes: images [B, in_channels, H, W] of any size, to logits [B, num_classes].

    Raises: ConfigError for an unknown shortcut, or a size that is not a whole number of at least 1.

    Source: [he2016resnet], Sec. 4.2.
    """

    def __init__(self, blocks: int, num_classes: int, in_channels: int, width: int, shortcut: str) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise ConfigError(
                f"resnet: shortcut is {shortcut!r}; give 'A' (subsample and add zero channels) or 'B' (1x1 convolution)"
            )
        check_counts("resnet", blocks=blocks, num_classes=num_classes, in_channels=in_channels, width=width)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.stage1 = _stage(blocks, width, width, 1, shortcut)
        self.stage2 = _stage(blocks, width, 2 * width, 2, shortcut)
        self.stage3 = _stage(blocks, 2 * width, 4 * width, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes] of the images `x`."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.stage3(self.stage2(self.stage1(out)))
        logits: torch.Tensor = self.classifier(self.flatten(self.pool(out)))
        return logits


def _stage(blocks: int, in_channels: int, channels: int, stride: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, shortcut) for _ in range(blocks - 1)))


def _shortcut(in_channels: int, channels: int, stride: int, kind: str) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    if kind == "A":
        return PadShortcut(channels - in_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(channels),
    )


def _of_depth(depth: int) -> Callable[..., nn.Module]:
    def factory(num_classes: int = 10, in_channels: int = 3, width: int = 16, shortcut: str = "A") -> nn.Module:
        return ResNetCifar((depth - 2) // 6, num_classes, in_channels, width, shortcut)

    factory.__name__ = factory.__qualname__ = f"resnet{depth}"
    factory.__doc__ = f"""Residual network of {depth} layers for small images, in the CIFAR form.

    Args:
        num_classes: number of outputs.
        in_channels: channels of an input image.
        width: channels of the first stage; the second and third have twice and four times as many.
        shortcut: where the shape changes, 'A': subsampling and zero channels, without parameters; or 'B': a 1×1
            convolution and batch normalisation.

    Raises: ConfigError for an unknown shortcut, or a size that is not a whole number of at least 1.

    Source: [he2016resnet], Sec. 4.2. See `ResNetCifar`.
    """
    return MODELS.register(f"resnet{depth}")(factory)


resnet8 = _of_depth(8)
resnet14 = _of_depth(14)
resnet20 = _of_depth(20)
resnet32 = _of_depth(32)
resnet44 = _of_depth(44)
resnet56 = _of_depth(56)
resnet110 = _of_depth(110)
