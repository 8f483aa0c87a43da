from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lowbit._errors import LowbitError
from lowbit.models import MODELS, build_model
from lowbit.models.resnet_cifar import BasicBlock, PadShortcut, resnet20

DEPTHS = (20, 32, 44, 56, 110)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def closed_form(depth: int, channels: int = 3, classes: int = 10, width: int = 16, shortcut: str = "A") -> int:
    blocks = (depth - 2) // 6
    widths = [width, 2 * width, 4 * width]
    convolutions = 9 * channels * width
    convolutions += sum(9 * w * w * (2 * blocks) for w in widths)
    convolutions -= sum(9 * w * (w - w // 2) for w in widths[1:])  # a stage's first convolution has half the inputs
    normalisation = 2 * width + sum(2 * w * (2 * blocks) for w in widths)
    projections = sum(w * w // 2 + 2 * w for w in widths[1:]) if shortcut == "B" else 0
    return convolutions + normalisation + projections + 4 * width * classes + classes


@pytest.mark.parametrize("depth", DEPTHS)
def test_parameter_count(depth: int) -> None:
    assert parameter_count(MODELS.get(f"resnet{depth}")()) == closed_form(depth)


def test_resnet20_has_the_published_size() -> None:
    assert parameter_count(resnet20()) == 269_722  # 0.27 M, [he2016resnet], Table 6


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_counts_the_layers_with_weights(depth: int) -> None:
    weighted = [m for m in MODELS.get(f"resnet{depth}")().modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == depth


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_options(shortcut: str) -> None:
    model = build_model(f"resnet20(width=6, shortcut={shortcut})", 100, 1, (28, 28), seed=0)
    assert parameter_count(model) == closed_form(20, 1, 100, width=6, shortcut=shortcut)
    assert model.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 100)


@pytest.mark.parametrize("size", [(1, 1), (5, 8), (7, 7), (32, 32)])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_both_shortcuts_fit_odd_sizes(size: tuple[int, int], shortcut: str) -> None:
    block = BasicBlock(4, 8, 2, shortcut).eval()
    assert block(torch.zeros(1, 4, *size)).shape == (1, 8, math.ceil(size[0] / 2), math.ceil(size[1] / 2))


def test_the_parameter_free_shortcut_subsamples_and_adds_zero_channels() -> None:
    x = torch.arange(2 * 3 * 5 * 4, dtype=torch.float32).reshape(2, 3, 5, 4)
    out = PadShortcut(extra=2, stride=2)(x)
    assert torch.equal(out[:, :3], x[:, :, ::2, ::2])
    assert torch.equal(out[:, 3:], torch.zeros(2, 2, 3, 2))


def test_a_block_whose_branch_is_silent_passes_its_shortcut() -> None:
    block = BasicBlock(3, 3, 1, "A").eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x)


def test_convolutions_start_with_variance_two_over_fan_out() -> None:
    model = build_model("resnet20", 10, 3, (32, 32), seed=0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            deviation = math.sqrt(2 / (9 * module.out_channels))
            # the sample deviation of n normal draws spreads by 1/sqrt(2n) of itself: five of those
            spread = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(deviation, rel=spread), name


def test_an_unknown_shortcut_is_refused() -> None:
    with pytest.raises(LowbitError, match="shortcut is 'C'; give 'A'"):
        resnet20(shortcut="C")
