"""VGG networks for small images."""

from __future__ import annotations

from torch import nn

from lowbit.models._base import MODELS, check_counts

WIDTHS = (1, 2, 4, 4, 8, 8, 8, 8)  # of the eight convolutions, as multiples of the first one's
POOLED = (0, 1, 3, 5, 7)  # the convolutions that a 2×2 max-pool follows


@MODELS.register("vgg11")
def vgg11(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    width: int = 64,
    affine: bool = True,
) -> nn.Module:
    """VGG-11 for small images: eight 3×3 convolutions in five stages, one linear classifier.

    Each convolution is followed by batch normalisation and a ReLU, each stage by a 2×2 max-pool as long as there are
    two pixels to pool (all five from 32×32 pixels on). With `width` = w the convolutions have w, 2w, 4w, 4w, 8w, 8w,
    8w, 8w channels.

    Shapes: images [B, in_channels, H, W] with (H, W) = `image_size`, to logits [B, num_classes].

    Args:
        num_classes: number of outputs.
        in_channels: channels of an input image.
        image_size: (height, width) in pixels.
        width: channels of the first convolution.
        affine: whether the batch normalisations learn a scale and a shift.

    Raises: ConfigError for a size that is not a whole number of at least 1.

    Source: [simonyan2015very], Table 1, column A. One linear layer in place of three, and batch normalisation, are what
    the literature does on CIFAR-10.
    """
    check_counts("vgg11", num_classes=num_classes, in_channels=in_channels, width=width)
    height, across = image_size
    net = nn.Sequential()
    before = in_channels
    for number, multiple in enumerate(WIDTHS):
        channels = multiple * width
        net.add_module(f"conv{number + 1}", nn.Conv2d(before, channels, 3, padding=1, bias=False))
        net.add_module(f"bn{number + 1}", nn.BatchNorm2d(channels, affine=affine))
        net.add_module(f"relu{number + 1}", nn.ReLU(inplace=True))
        if number in POOLED and min(height, across) > 1:
            height, across = height // 2, across // 2
            net.add_module(f"pool{POOLED.index(number) + 1}", nn.MaxPool2d(2))
        before = channels
    net.add_module("flatten", nn.Flatten())
    net.add_module("classifier", nn.Linear(before * height * across, num_classes))
    return net
