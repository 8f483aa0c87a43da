"""Maps that become rows, and networks that are one program from end to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit.deploy import observe
from lowbit.deploy.kernels.compiled import CompiledModule
from lowbit.deploy.kernels.loader import instruction_sets

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="lowbit was installed without its kernels")
LENGTHS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "module": lambda net, x, y: net.flatten(y),
    "method": lambda net, x, y: y.flatten(1),
    "function": lambda net, x, y: torch.flatten(y, 1),
    "view": lambda net, x, y: y.view(y.size(0), -1),
    "view of a shape": lambda net, x, y: y.view((y.shape[0], -1)),
    "view of the input's": lambda net, x, y: y.view(x.size(0), -1),
    "reshape": lambda net, x, y: y.reshape(y.size()[0], -1),
    "reshape of the input's": lambda net, x, y: torch.reshape(y, (x.shape[0], -1)),
    "number": lambda net, x, y: y.view(-1, net.fan_in),
}
SETTINGS: list[dict[str, Any]] = [
    {"weights": 1, "activations": 1},
    {"weights": 1, "activations": 1, "activation_quantizer": "sign"},
    {"weights": 2, "activations": 2, "activation_quantizer": "lsq"},
    {"weights": 8, "activations": 8},
]


class Flat(nn.Module):
    """A convolution, maps as rows, two linear layers."""

    def __init__(
        self,
        flat: Callable[[Any, Tensor, Tensor], Tensor],
        size: tuple[int, int],
        between: Callable[[Any, Tensor], Tensor] = lambda net, y: y,
    ) -> None:
        super().__init__()
        self.fan_in = 6 * size[0] * size[1]
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.flatten = nn.Flatten()
        self.drop = nn.Dropout(0.5)
        self.same = nn.Identity()
        self.wide = nn.BatchNorm1d(self.fan_in)
        self.hidden = nn.Linear(self.fan_in, 9)
        self.last = nn.Linear(9, 5)
        self.flat, self.between = flat, between

    def forward(self, x: Tensor) -> Tensor:
        y = self.flat(self, x, self.norm(self.conv(x)))
        return self.last(self.hidden(self.between(self, y)))


def trained(model: nn.Module, x: Tensor, **options: Any) -> nn.Module:
    converted = lowbit.convert(model, **{"weights": 2, "activations": 2, "keep_float": (), **options})
    with torch.no_grad():
        converted.train()(x)
    return converted.eval()


def assert_same(model: nn.Module, compiled: CompiledModule, x: Tensor) -> None:
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(compiled(x), model(x))
    seen, expected = compiled.observe(x).tensors(), observe(model, x).tensors()
    assert [key for key in seen if key.endswith(":codes")] == [key for key in expected if key.endswith(":codes")]
    assert all(torch.equal(value, expected[key]) for key, value in seen.items())


def on_torch(compiled: CompiledModule, x: Tensor) -> list[str]:
    return [line for line in compiled.describe(x).splitlines() if line.startswith("torch")]


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 5), (8, 8)])
@pytest.mark.parametrize("way", LENGTHS)
def test_rows_of_maps(way: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = trained(Flat(LENGTHS[way], size), torch.randn(4, 3, *size))
    compiled = lowbit.compile(model, threads=1)
    for batch in (1, 3, 70):
        assert_same(model, compiled, torch.randn(batch, 3, *size))
        assert not on_torch(compiled, torch.randn(batch, 3, *size))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("isa", instruction_sets())
def test_every_setting(setting: dict[str, Any], isa: str) -> None:
    torch.manual_seed(0)
    model = trained(Flat(LENGTHS["method"], (7, 9)), torch.randn(4, 3, 7, 9), **setting)
    compiled = CompiledModule(model, threads=2, isa=isa)
    for batch in (1, 2):
        assert_same(model, compiled, torch.randn(batch, 3, 7, 9) * 3)


@pytest.mark.parametrize(
    ("between", "stays"),
    [
        (lambda net, y: net.same(net.drop(y)), 0),
        (lambda net, y: F.dropout(y, 0.5, net.training), 0),
        (lambda net, y: F.dropout(y, p=0.5, training=net.training), 0),
        (lambda net, y: net.drop(y.relu()), 0),
        (lambda net, y: F.relu(net.drop(y)).flatten(1), 0),
        (lambda net, y: net.wide(y), 1),  # a factor for each number, and not for each channel
        (lambda net, y: y + y.relu(), 1),
        (lambda net, y: y.sigmoid(), 2),
        (lambda net, y: F.dropout(y, 0.0, True), 2),
    ],
)
def test_what_may_lie_between(between: Callable[[Any, Tensor], Tensor], stays: int) -> None:
    torch.manual_seed(0)
    model = trained(Flat(LENGTHS["view"], (4, 3), between), torch.randn(4, 3, 4, 3))
    compiled = lowbit.compile(model, threads=1)
    for batch in (1, 3):
        assert_same(model, compiled, torch.randn(batch, 3, 4, 3))
    assert len(on_torch(compiled, torch.randn(1, 3, 4, 3))) == stays


def test_rows_that_are_given_back() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)
            self.hidden = nn.Linear(24, 9)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x).flatten(1)
            return y, self.hidden(y)

    model = trained(Twice(), torch.randn(4, 3, 4, 4))
    compiled = lowbit.compile(model, threads=1)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 4, 4)
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(model(x), compiled(x), strict=True))


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_rows_of_what_the_kernels_did_not_compute(size: tuple[int, int]) -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.head = nn.Linear(3 * size[0] * size[1], 9)
            self.last = nn.Linear(9, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return y, self.last(self.head(x.sigmoid().flatten(1)))

    torch.manual_seed(0)
    model = trained(Apart(), torch.randn(4, 3, *size))
    compiled = lowbit.compile(model, threads=1)
    for batch in (1, 3):
        for form in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(batch, 3, *size).contiguous(memory_format=form)
            with torch.no_grad():
                assert all(torch.equal(a, b) for a, b in zip(model(x), compiled(x), strict=True))
        seen, expected = compiled.observe(x).tensors(), observe(model, x).tensors()
        assert all(torch.equal(value, expected[key]) for key, value in seen.items())


def test_rows_of_the_input() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(60, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 5))
    model = trained(net, torch.randn(4, 3, 4, 5))
    compiled = lowbit.compile(model, threads=1)
    for batch in (1, 3, 70):
        assert_same(model, compiled, torch.randn(batch, 3, 4, 5))
        assert_same(model, compiled, torch.randn(batch, 3, 4, 5).contiguous(memory_format=torch.channels_last))
        assert not on_torch(compiled, torch.randn(batch, 3, 4, 5))


def test_examples_in_disorder_are_no_rows() -> None:
    """A view that does not keep the examples apart, although it could be taken for one that does."""

    class Mingled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.last = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x).view(-1, 16))

    model = trained(Mingled(), torch.randn(4, 3, 4, 4))
    compiled = lowbit.compile(model, threads=1)
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
    assert on_torch(compiled, x) == ["torch: view"]


def one_program() -> tuple[nn.Module, CompiledModule]:
    torch.manual_seed(0)
    model = trained(Flat(LENGTHS["module"], (4, 4)), torch.randn(4, 3, 4, 4))
    compiled = lowbit.compile(model, threads=1)
    compiled(torch.randn(1, 3, 4, 4))
    return model, compiled


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x.transpose(2, 3),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.repeat(1, 2, 1, 1)[:, ::2],
        lambda x: x[:, :, :1].expand(1, 3, 4, 4),
        torch._neg_view,
        lambda x: x.clone().requires_grad_(),
        lambda x: nn.Parameter(x),
    ],
)
def test_a_known_program_takes_what_the_network_takes(given: Callable[[Tensor], Tensor]) -> None:
    model, compiled = one_program()
    x = given(torch.randn(1, 3, 4, 4))
    for _ in range(2):
        found = compiled(x)
        assert not found.requires_grad
        assert torch.equal(found, model(x))


def test_results_are_not_written_over() -> None:
    model, compiled = one_program()
    inputs = torch.randn(5, 1, 3, 4, 4)
    results = [compiled(x) for x in inputs]
    with torch.no_grad():
        assert all(torch.equal(found, model(x)) for found, x in zip(results, inputs, strict=True))


def test_inputs_that_the_program_is_not_for() -> None:
    model, compiled = one_program()
    x = torch.randn(1, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert compiled(x).dtype == model(x).dtype
    for wrong in (x[:, :2], x[..., :3], x.to("meta"), None):
        with pytest.raises((RuntimeError, AttributeError, TypeError, lowbit.ConfigError)) as theirs:
            model(wrong)
        with pytest.raises(theirs.type):
            compiled(wrong)
    with torch.no_grad():
        assert torch.equal(compiled(x.double()), model(x.double()))
        assert torch.equal(compiled(x=x), model(x))
        assert torch.equal(compiled(x), model(x))


def test_programs_are_kept_for_the_shapes_used_last() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(4, 3, 8, 8))
    compiled = lowbit.compile(model, threads=1)
    sizes = list(range(4, 15))
    with torch.no_grad():
        for size in (*sizes, *sizes[::-1], 4, 9, 4):
            x = torch.randn(1, 3, size, size)
            for _ in range(2):
                assert torch.equal(compiled(x), model(x))
            compiled(torch.randn(1, 3, 4, 4))
    assert len(compiled._plans) == 8
    assert any(key is not None and key[1][0] == (1, 3, 4, 4) for key in compiled._plans)
