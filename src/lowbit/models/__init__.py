"""Reference networks, and the one way to build a network from its name.

A model is an ordinary float network of `nn.Conv2d`, `nn.Linear`, `nn.BatchNorm*d` and `nn.ReLU` modules, each used in
one place only, so that `lowbit.convert` can see every layer. A new one is a file here with
`@MODELS.register("name")` over a factory, and a test.
"""

from __future__ import annotations

import torch
from torch import nn

from lowbit._errors import ConfigError, LowbitError
from lowbit._registry import discover
from lowbit._spec import call, parse
from lowbit.models._base import MODELS, check_counts
from lowbit.models._user import build_user_model

__all__ = ["MODELS", "build_model"]

discover(__name__, __path__)


def build_model(spec: str, num_classes: int, in_channels: int, image_size: tuple[int, int], seed: int) -> nn.Module:
    """Build the model that `spec` names, the same parameters for the same `seed`.

    `spec` is a registered name with its options, `"resnet20"` or `"lenet5(hidden=128)"`, or a function of the user's
    own, `"package.module:function(width=8)"`, found in the working directory or among the installed packages. A
    function is given those of `num_classes`, `in_channels` and `image_size` that it accepts; the spec cannot set them.

    The parameters are drawn on the CPU from torch's generator, seeded with `seed`; its state is put back afterwards.

    Args:
        spec: the name, with options.
        num_classes: number of outputs.
        in_channels: channels of an input image.
        image_size: (height, width) of an input image, in pixels.
        seed: seed of the initial parameters.

    Raises: UnknownNameError for a name, module, function or option that does not exist; ConfigError for an option out
    of range, an image too small for the model, a function that fails or one that does not return an `nn.Module`.
    """
    name, options = parse(spec)
    height, width = image_size
    check_counts(f"model '{name}'", num_classes=num_classes, in_channels=in_channels, height=height, width=width)
    context = {"num_classes": num_classes, "in_channels": in_channels, "image_size": (height, width)}
    # Only the CPU's generator is touched: saving the state of a GPU's would open a context on it.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            if ":" in name:
                return build_user_model(name, options, context)
            return call(f"model '{name}'", MODELS.get(name), options, context)
        except LowbitError:
            raise
        except Exception as error:  # whatever the model's own code raises is the message
            raise ConfigError(f"model '{spec}' cannot be built: {type(error).__name__}: {error}") from error
