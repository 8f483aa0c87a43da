"""LeNet-5, in the form the quantization literature trains."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from lowbit._errors import ConfigError
from lowbit.models._base import MODELS, check_counts, check_widths


@MODELS.register("lenet5")
def lenet5(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    channels: Sequence[int] = (32, 64),
    hidden: int = 512,
    affine: bool = True,
) -> nn.Module:
    """LeNet-5 as 32C5-MP2-64C5-MP2-512FC with batch normalisation before every ReLU.

    Two 5×5 convolutions, each with a 2×2 max-pool, then one hidden linear layer and a linear classifier. The
    convolutions pad by 2, so that images down to 4×4 pass; a layer before a batch normalisation has no bias.

    Shapes: images [B, in_channels, H, W] with (H, W) = `image_size`, to logits [B, num_classes].

    Args:
        num_classes: number of outputs.
        in_channels: channels of an input image.
        image_size: (height, width) in pixels, each at least 4.
        channels: widths of the two convolutions.
        hidden: width of the hidden linear layer.
        affine: whether the batch normalisations learn a scale and a shift. Without them what comes to the ReLUs has
            mean 0 and variance 1, as a quantized ReLU of fixed resolution wants it ([yin2019understanding], Sec. 4).

    Raises: ConfigError for an image under 4×4, or a size that is not a whole number of at least 1.

    Source: the layer widths of [louizos2019relaxed]; the network it goes back to is [lecun1998gradient]. The batch
    normalisation and the padding are ours.
    """
    first, second = check_widths("lenet5", "channels", channels, length=2)
    check_counts("lenet5", num_classes=num_classes, in_channels=in_channels, hidden=hidden)
    height, width = image_size
    if min(height, width) < 4:
        given = f"lenet5: images of {height}x{width} vanish in its two 2x2 max-pools"
        raise ConfigError(f"{given}; give images of at least 4x4, or use the model 'mlp'")
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, first, 5, padding=2, bias=False),
            bn1=nn.BatchNorm2d(first, affine=affine),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, 5, padding=2, bias=False),
            bn2=nn.BatchNorm2d(second, affine=affine),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(second * (height // 4) * (width // 4), hidden, bias=False),
            bn3=nn.BatchNorm1d(hidden, affine=affine),
            relu3=nn.ReLU(inplace=True),
            classifier=nn.Linear(hidden, num_classes),
        )
    )
