"""What is stored how, and the goals for the size of a file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from deploy_nets import float_net, trained
from lowbit.deploy import save, sizes


def float_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


@pytest.mark.parametrize("options", [{"weights": 1}, {"weights": 3, "activations": 2}])
def test_every_tensor_is_listed_once(tmp_path: Path, options: dict[str, Any]) -> None:
    model = trained(**options)
    found = sizes(model)
    names = [tensor.name for tensor in found.tensors]
    assert len(set(names)) == len(names)
    assert set(float_net().state_dict()) <= set(names)
    assert found.before == float_bytes(float_net())
    assert found.after < save(model, tmp_path / "a") < found.after + 6000
    codes = {tensor.name: tensor for tensor in found.tensors if tensor.stored == "codes"}
    assert set(codes) == {"3.weight", "6.weight", "9.weight"}
    bits = options["weights"]
    assert codes["9.weight"].bytes == -(-144 * 20 * bits // 8)
    assert (codes["9.weight"].bits, codes["9.weight"].float_bytes) == (bits, 144 * 20 * 4)
    assert {t.name for t in found.tensors if t.stored == "other"} == {"1.num_batches_tracked", "4.num_batches_tracked"}
    assert "3.weight.scale" in {t.name for t in found.tensors if t.stored == "scale"}


def test_float_tensors_come_largest_first() -> None:
    kept = sizes(trained(weights=1)).float_tensors
    assert [tensor.name for tensor in kept][:2] == ["0.weight", "11.weight"]
    assert all(first.bytes >= second.bytes for first, second in pairwise(kept))


def test_a_weight_shared_with_a_float_layer_counts_once_before() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.head.weight = self.table.weight

    found = sizes(lowbit.convert(Tied(), keep_float=()))
    assert found.before == 6 * 4 * 4
    assert {tensor.stored for tensor in found.tensors} == {"codes", "scale", "float"}


def test_as_text_and_as_json() -> None:
    found = sizes(trained(weights=1))
    assert "144×20" not in str(found)
    assert "20×144" in str(found)
    assert found.to_dict()["tensors"][0]["name"] == "0.weight"
    assert found.to_dict()["before"] == found.before


def test_one_bit_weights_take_less_than_a_28th(tmp_path: Path) -> None:
    layer = nn.Conv2d(512, 512, 3, bias=False)
    for spec in ("sign", "sign(scale=mean-abs, granularity=channel)"):
        size = save(lowbit.convert(layer, weights=1, quantizer=spec, keep_float=()), tmp_path / "a")
        assert float_bytes(layer) / size > 28


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.short = nn.Sequential()
        if stride != 1:
            self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


def resnet18(classes: int) -> nn.Sequential:
    blocks = []
    for before, after, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        blocks += [Block(before, after, stride), Block(after, after, 1)]
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


# With 1000 classes the float last layer alone is 1/22.8 of the whole; no file that keeps it exactly can reach 1/15.
@pytest.mark.parametrize(("classes", "aim"), [(10, 15), (100, 15), (1000, 13)])
def test_a_whole_resnet18_with_float_ends(tmp_path: Path, classes: int, aim: int) -> None:
    torch.manual_seed(0)
    net = resnet18(classes)
    assert sum(p.numel() for p in net.parameters()) == 11_176_512 + 513 * classes
    model = lowbit.convert(net, weights=1, activations=1, activation_quantizer="sign")
    size = save(model, tmp_path / "a")
    assert float_bytes(net) / size > aim
    header = size - sizes(model).after
    assert header < 40_000
