from __future__ import annotations

import pytest
import torch
from torch import nn

from lowbit._errors import LowbitError
from lowbit.models import build_model
from lowbit.models.lenet import lenet5


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("channels", "size", "pixels"),
    [(1, (28, 28), 7 * 7), (3, (32, 32), 8 * 8), (1, (8, 8), 2 * 2), (1, (7, 11), 1 * 2)],
)
def test_parameter_count(channels: int, size: tuple[int, int], pixels: int) -> None:
    convolutions = 25 * channels * 32 + 25 * 32 * 64
    linear = 64 * pixels * 512 + 512 * 10 + 10
    normalisation = 2 * (32 + 64 + 512)
    assert parameter_count(lenet5(10, channels, size)) == convolutions + linear + normalisation


def test_layers_are_those_of_32c5_mp2_64c5_mp2_512fc() -> None:
    kinds = ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] * 2
    kinds += ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [type(module).__name__ for module in lenet5().children()] == kinds


def test_widths_are_options() -> None:
    model = build_model("lenet5(channels=(4, 6), hidden=9)", 10, 1, (8, 8), seed=0)
    assert parameter_count(model) == 25 * 4 + 25 * 4 * 6 + 6 * 4 * 9 + 9 * 10 + 10 + 2 * (4 + 6 + 9)


def test_the_smallest_image_passes() -> None:
    assert lenet5(image_size=(4, 4)).eval()(torch.zeros(1, 3, 4, 4)).shape == (1, 10)


@pytest.mark.parametrize("size", [(3, 3), (28, 3), (1, 28)])
def test_too_small_an_image_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(LowbitError, match=f"images of {size[0]}x{size[1]} vanish .* at least 4x4"):
        lenet5(image_size=size)


@pytest.mark.parametrize("channels", [3, (3,), (3, 4, 5), (3, 0), (3, 4.0), "34"])
def test_wrong_channels_are_refused(channels: object) -> None:
    with pytest.raises(LowbitError, match=r"lenet5: channels is .*give 2 whole numbers"):
        lenet5(channels=channels)  # type: ignore[arg-type]
