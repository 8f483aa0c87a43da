from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lowbit._errors import LowbitError
from lowbit.models import build_model
from lowbit.models.mobilenet import mobilenet


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("multiplier", "millions"),
    [(1.0, 4.2), (0.75, 2.6), (0.5, 1.3), (0.25, 0.5)],  # [howard2017mobilenets], Table 6
)
def test_the_number_of_parameters_is_the_published_one(multiplier: float, millions: float) -> None:
    assert round(parameter_count(mobilenet(1000, 3, multiplier)) / 1e6, 1) == millions


def test_twenty_eight_layers_with_weights() -> None:
    weighted = [m for m in mobilenet(multiplier=0.1).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == 28
    assert sum(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in weighted) == 13


def test_a_depthwise_convolution_keeps_channels_apart() -> None:
    block = mobilenet(multiplier=0.25).block1.eval()
    x = torch.zeros(1, 8, 5, 5)
    x[:, 3] = 1
    touched = block.depthwise(x).abs().sum((0, 2, 3)) > 0
    assert touched.tolist() == [channel == 3 for channel in range(8)]


def test_the_image_is_halved_five_times() -> None:
    model = mobilenet(multiplier=0.1).eval()
    sizes: list[int] = []
    for module in model.children():
        module.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[-1]))
    model(torch.zeros(1, 3, 224, 224))
    assert sizes[:16] == [112, 112, 112, 112, 56, 56, 28, 28, *6 * [14], 7, 7]


def test_options_in_a_spec() -> None:
    model = build_model("mobilenet(multiplier=0.5)", 7, 1, (28, 28), seed=0)
    assert model.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


def test_channels_are_rounded_and_at_least_one() -> None:
    channels = [m.out_channels for m in mobilenet(multiplier=0.01).modules() if isinstance(m, nn.Conv2d)]
    assert channels[0] == 1
    assert channels[-1] == 10


@pytest.mark.parametrize("wrong", [0, -1.0, math.inf, math.nan, "half", True])
def test_a_multiplier_that_is_not_a_positive_number_is_refused(wrong: object) -> None:
    with pytest.raises(LowbitError, match=r"multiplier is .*; give a positive number"):
        mobilenet(multiplier=wrong)  # type: ignore[arg-type]


def test_convolutions_start_with_variance_two_over_fan_out() -> None:
    model = build_model("mobilenet(multiplier=0.5)", 10, 3, (32, 32), seed=0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
            # the sample deviation of n normal draws spreads by 1/sqrt(2n) of itself: five of those
            spread = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=spread), name
