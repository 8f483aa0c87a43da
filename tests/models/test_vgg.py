from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from lowbit._errors import LowbitError
from lowbit.models import build_model
from lowbit.models.vgg import vgg11


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_count_is_that_of_column_a_with_one_linear_layer() -> None:
    widths = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = sum(9 * a * b for a, b in pairwise(widths))
    assert parameter_count(vgg11()) == convolutions + 2 * sum(widths[1:]) + 512 * 10 + 10
    assert parameter_count(vgg11(affine=False)) == convolutions + 512 * 10 + 10


def test_five_stages() -> None:
    kinds = "".join({"Conv2d": "c", "MaxPool2d": "M"}.get(type(m).__name__, "") for m in vgg11().children())
    assert kinds == "cMcMccMccMccM"


@pytest.mark.parametrize(("size", "pools"), [((32, 32), 5), ((8, 8), 3), ((64, 33), 5), ((1, 1), 0)])
def test_any_image_passes(size: tuple[int, int], pools: int) -> None:
    model = build_model("vgg11(width=4)", 7, 1, size, seed=0).eval()
    assert model(torch.zeros(2, 1, *size)).shape == (2, 7)
    assert sum(isinstance(m, nn.MaxPool2d) for m in model.modules()) == pools


def test_a_width_that_is_none_is_refused() -> None:
    with pytest.raises(LowbitError, match="width is 0"):
        vgg11(width=0)
