"""Global average pooling within a program: torch's additions in torch's order, or torch itself."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
import lowbit.deploy.kernels.averaging as averaging
import lowbit.deploy.kernels.lowering as lowering
import lowbit.deploy.kernels.tracing as tracing
from lowbit.deploy import observe
from lowbit.deploy.kernels.averaging import ORDERS, find_order, means, order_of
from lowbit.deploy.kernels.loader import instruction_sets, kernels

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="lowbit was installed without its kernels")
SIZES = [(1, 1), (1, 2), (2, 2), (3, 3), (4, 4), (1, 17), (7, 7), (8, 8), (14, 14), (33, 17), (40, 52)]
WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "adaptive module": lambda net, x: net.pool(x),
    "adaptive": lambda net, x: F.adaptive_avg_pool2d(x, 1),
    "adaptive pair": lambda net, x: F.adaptive_avg_pool2d(x, output_size=(1, 1)),
    "method": lambda net, x: x.mean((2, 3)),
    "method, negative": lambda net, x: x.mean(dim=[-1, -2], keepdim=True),
    "function": lambda net, x: torch.mean(x, [2, 3]),
    "function, keepdim": lambda net, x: torch.mean(x, (2, 3), True),
    "window module": lambda net, x: net.window(x),
    "window": lambda net, x: F.avg_pool2d(x, net.size, stride=1),
}


class Averaged(nn.Module):
    """A layer, a mean over its maps, a classifier; all that the mean gives is given back."""

    def __init__(self, way: Callable[[Any, Tensor], Tensor], size: tuple[int, int], width: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.window = nn.AvgPool2d(size)
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Linear(width, 5)
        self.size = size
        self.way = way

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.way(self, self.norm(self.conv(x)))
        return y, self.classifier(self.drop(y.flatten(1)))


def trained(model: nn.Module, x: Tensor, **options: Any) -> nn.Module:
    converted = lowbit.convert(model, **{"weights": 2, "activations": 4, "keep_float": (), **options})
    with torch.no_grad():
        converted.train()(x)
    return converted.eval()


def averaged(way: str, size: tuple[int, int], width: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return trained(Averaged(WAYS[way], size, width), torch.randn(4, 3, *size))


def assert_equal(model: nn.Module, compiled: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected, found = model(x), compiled(x)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_the_mean_is_that_of_torch(way: str, size: tuple[int, int]) -> None:
    model = averaged(way, size)
    compiled = lowbit.compile(model, threads=1)
    for batch in (1, 3):
        x = torch.randn(batch, 3, *size)
        described = compiled.describe(x)
        assert "mean" in described
        assert not any(line.startswith("torch") and "getitem" not in line for line in described.splitlines())
        for _ in range(5):
            assert_equal(model, compiled, torch.randn(batch, 3, *size) * 8)
    seen, expected = compiled.observe(x).tensors(), observe(model, x).tensors()
    assert "classifier:codes" in seen
    assert all(torch.equal(value, expected[key]) for key, value in seen.items())


def test_several_threads_average() -> None:
    model = averaged("method", (40, 52), 24)
    compiled = lowbit.compile(model, threads=3)
    for batch in (1, 2, 5):
        assert_equal(model, compiled, torch.randn(batch, 3, 40, 52))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the order of another processor")
@pytest.mark.parametrize("size", [(3, 3), (4, 4), (7, 7), (8, 8), (33, 17)])
def test_a_wrong_order_is_rejected(size: tuple[int, int]) -> None:
    right = order_of("mean", *size)
    assert right is not None
    for order in ORDERS:
        found = find_order(lambda x: x.mean((2, 3)), *size, orders=(order,))
        assert (found == order) == (order == right)
    assert find_order(lambda x: x.mean((2, 3)), *size, orders=[o for o in ORDERS if o != right]) is None


def test_other_sums_and_other_divisions_are_rejected() -> None:
    assert find_order(lambda x: x.flip(3).mean((2, 3)), 8, 8) is None
    assert find_order(lambda x: x.double().mean((2, 3)).float(), 8, 8) is None
    assert find_order(lambda x: x.sum((2, 3)) * torch.tensor(1 / 49), 7, 7) is None
    assert find_order(lambda x: x.sum((2, 3)) / 49, 7, 7) == order_of("mean", 7, 7)


def test_the_proof_leaves_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    find_order(lambda x: x.mean((2, 3)), 5, 5)
    assert torch.equal(torch.rand(3), expected)


def test_an_order_without_a_proof_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "order_of", lambda *_: None)
    model = averaged("method", (8, 8))
    compiled = lowbit.compile(model, threads=1)
    x = torch.randn(2, 3, 8, 8)
    assert_equal(model, compiled, x)
    assert "torch: mean" in compiled.describe(x)


def test_a_wrong_order_gives_another_result(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(64, 8, 8)
    right = order_of("mean", 8, 8)
    assert right is not None
    assert torch.equal(means(x, right), x.mean((1, 2)))
    wrong = 0 if right != 0 else 8
    assert not torch.equal(means(x, wrong), x.mean((1, 2)))
    monkeypatch.setattr(lowering, "order_of", lambda *_: wrong)
    model = averaged("method", (8, 8), 64)
    compiled = lowbit.compile(model, threads=1)
    compiled(torch.randn(2, 3, 8, 8))
    assert "more than its trace shows" in compiled.why_not  # and the model runs on torch


def test_a_map_that_torch_may_divide_among_threads_is_left_to_it() -> None:
    assert order_of("mean", 180, 180) is not None
    assert order_of("mean", 200, 200) is None


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: x.mean(2).mean(2),
        lambda net, x: x.mean((2, 3), dtype=torch.float64).float(),
        lambda net, x: x.mean((1, 2))[:, :7],
        lambda net, x: F.avg_pool2d(x, (9, 8))[:, :, 0, 0],
        lambda net, x: F.avg_pool2d(x, (9, 9), divisor_override=5),
        lambda net, x: F.avg_pool2d(x, (9, 9), stride=9, padding=1),
        lambda net, x: F.adaptive_avg_pool2d(x, (1, 2))[..., :1],
        lambda net, x: torch.mean(input=x, dim=(2, 3)),
        lambda net, x: F.adaptive_avg_pool2d(torch.relu(input=x), 1),
    ],
)
def test_what_is_no_mean_over_a_map(between: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = trained(Averaged(between, (9, 9)), torch.randn(4, 3, 9, 9))
    assert_equal(model, lowbit.compile(model, threads=1), torch.randn(2, 3, 9, 9))


def test_what_torch_computes_may_lie_otherwise_in_memory() -> None:
    """Torch's additions follow the memory, also of what a program would have copied first."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 3)
            self.drop = nn.Dropout()
            self.classifier = nn.Linear(32, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.drop(self.stem(x)).mean((2, 3))
            return y, self.classifier(y)

    x = torch.randn(1, 3, 11, 11)
    model = trained(Head(), x.repeat(4, 1, 1, 1), overrides={"stem": "float"})
    compiled = lowbit.compile(model, threads=1)
    for format in (torch.contiguous_format, torch.channels_last):
        assert_equal(model, compiled, x.contiguous(memory_format=format))
    assert "kernels: convolution" in compiled.describe(x)


def test_what_the_kernels_refuse() -> None:
    module: Any = kernels()
    for shape, lanes, message in (
        ((4, 1, 1), 3, "3 lanes"),
        ((4, 1, 2), 8, "shapes do not fit"),
        ((5, 1, 1), 8, "shapes do not fit"),
    ):
        program = module.Program(1, "")
        program.mean(program.input(4, 3, 3, 0), program.floats(*shape, 0), lanes)
        with pytest.raises(ValueError, match=message):
            program.finish()
    program = module.Program(1, "")
    source, one = program.input(4, 3, 3, 0), program.floats(4, 1, 1, 0)
    program.mean(source, one, 8)
    program.output(one)
    program.finish()
    x, y = torch.zeros(4, 9), torch.zeros(1, 4)
    with pytest.raises(ValueError, match="no maps of one line"):
        program.run_rows([x.data_ptr()], [y.data_ptr()], 1)


def test_the_orders_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    order_of("adaptive", 6, 6)
    monkeypatch.setattr(averaging, "find_order", lambda *_: pytest.fail("looked for again"))
    assert order_of("adaptive", 6, 6) is not None
