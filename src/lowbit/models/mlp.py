"""The fully connected network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from lowbit.models._base import MODELS, check_counts, check_widths


@MODELS.register("mlp")
def mlp(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    hidden: Sequence[int] = (512, 512),
) -> nn.Module:
    """Fully connected network: for each hidden width, linear, batch normalisation, ReLU; then a linear classifier.

    The hidden layers have no bias, because the batch normalisation that follows has one.

    Shapes: images [B, in_channels, H, W] with (H, W) = `image_size`, to logits [B, num_classes].

    Args:
        num_classes: number of outputs.
        in_channels: channels of an input image.
        image_size: (height, width) in pixels.
        hidden: widths of the hidden layers, one or more.

    Raises: ConfigError for a size that is not a whole number of at least 1.
    """
    check_counts("mlp", num_classes=num_classes, in_channels=in_channels, height=image_size[0], width=image_size[1])
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    features = in_channels * image_size[0] * image_size[1]
    for index, width in enumerate(check_widths("mlp", "hidden", hidden), start=1):
        layers[f"fc{index}"] = nn.Linear(features, width, bias=False)
        layers[f"bn{index}"] = nn.BatchNorm1d(width)
        layers[f"relu{index}"] = nn.ReLU(inplace=True)
        features = width
    layers["classifier"] = nn.Linear(features, num_classes)
    return nn.Sequential(layers)
