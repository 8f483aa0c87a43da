from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lowbit.models import MODELS, build_model
from lowbit.models.resnet import resnet18, resnet34

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def closed_form(depth: int, channels: int, classes: int, width: int) -> int:
    widths = [width, 2 * width, 4 * width, 8 * width]
    counts = list(zip(widths, BLOCKS[depth], strict=True))
    convolutions = 49 * channels * width + sum(9 * w * w * 2 * blocks for w, blocks in counts)
    convolutions -= sum(9 * w * (w - w // 2) for w in widths[1:])  # a stage's first convolution has half the inputs
    normalisation = 2 * width + sum(2 * w * 2 * blocks for w, blocks in counts)
    projections = sum(w * w // 2 + 2 * w for w in widths[1:])
    return convolutions + normalisation + projections + 8 * width * classes + classes


@pytest.mark.parametrize(("factory", "published"), [(resnet18, 11_689_512), (resnet34, 21_797_672)])
def test_the_number_of_parameters_is_the_well_known_one(factory: object, published: int) -> None:
    assert parameter_count(factory(num_classes=1000)) == published  # type: ignore[operator]


@pytest.mark.parametrize("depth", BLOCKS)
def test_options(depth: int) -> None:
    model = build_model(f"resnet{depth}(width=6)", 100, 1, (28, 28), seed=0)
    assert parameter_count(model) == closed_form(depth, 1, 100, width=6)
    assert model.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 100)


@pytest.mark.parametrize("depth", BLOCKS)
def test_depth_counts_the_layers_with_weights_beside_the_shortcuts(depth: int) -> None:
    model = MODELS.get(f"resnet{depth}")(width=2)
    weighted = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "shortcut" not in n]
    assert len(weighted) == depth


def test_the_image_is_halved_five_times() -> None:
    model = resnet18(width=2).eval()
    sizes: dict[str, int] = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _m, _i, out, key=name: sizes.update({key: out.shape[-1]}))
    model(torch.zeros(1, 3, 224, 224))
    assert [sizes[name] for name in ("conv1", "pool1", "stage1", "stage2", "stage3", "stage4", "pool")] == [
        112,
        56,
        56,
        28,
        14,
        7,
        1,
    ]


@pytest.mark.parametrize("size", [(1, 1), (33, 47)])
def test_images_of_any_size_pass(size: tuple[int, int]) -> None:
    assert resnet18(width=2).eval()(torch.zeros(1, 3, *size)).shape == (1, 10)


def test_convolutions_start_with_variance_two_over_fan_out() -> None:
    model = build_model("resnet18(width=16)", 10, 3, (32, 32), seed=0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            deviation = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            # the sample deviation of n normal draws spreads by 1/sqrt(2n) of itself: five of those
            spread = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(deviation, rel=spread), name
