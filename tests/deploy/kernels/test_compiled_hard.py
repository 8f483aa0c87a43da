"""Models that a trace could get wrong: compiled they compute the same, or are left to PyTorch with a reason."""

from __future__ import annotations

import logging
import os
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


class Net(nn.Module):
    """Two layers and what lies between them."""

    def __init__(self, between: Callable[..., Any]) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 5, 3, padding=1)
        self.b = nn.Conv2d(5, 5, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.between = between

    def forward(self, x: Tensor) -> Any:
        return self.between(self, x)


class Net2(Net):
    """The same, of two inputs: a tracer wants to know their number."""

    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.between(self, x, y)


def build(between: Callable[..., Any], *inputs: Tensor, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    net = Net(between) if len(inputs) == 1 else Net2(between)
    model = lowbit.convert(net, 1, 2, keep_float=(), activation_quantizer="lsq", **options)
    model.train()
    model(*(x.clone() for x in inputs))
    return model.eval()


def check(model: nn.Module, *inputs: Tensor) -> CompiledModule:
    compiled = lowbit.compile(model, threads=1)
    with torch.no_grad():
        for _ in range(2):
            expected, found = (m(*(x.clone() for x in inputs)) for m in (model, compiled))
            if isinstance(expected, Tensor):
                expected, found = (expected,), (found,)
            assert len(found) == len(expected)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    return compiled


def residual_in_place(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y += x.sum(1, keepdim=True)
    return net.b(net.relu(y))


def unused_result(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    net.relu(y)
    return net.b(y)


def unused_method(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.add_(1)
    return net.b(y)


def read_again(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = net.relu(y)
    return net.b(z) + y


def through_a_view(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    F.relu(y.flatten(1), inplace=True)
    return net.b(y)


def into_an_output(net: Any, x: Tensor) -> Tensor:
    y = net.a(x).detach()
    torch.add(y, 1.0, out=y)
    return net.b(y)


def unknown_in_place(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y.sigmoid_()
    return net.b(y)


def asks_for_a_tensor(net: Any, x: Tensor) -> Tensor:
    return net.b(net.a(x)) if isinstance(x, Tensor) else x


def reads_a_latent_weight(net: Any, x: Tensor) -> Tensor:
    return net.b(net.a(x)) * net.b.weight.sum()


def keywords_within(net: Any, x: Tensor) -> Tensor:
    return net.b(input=net.relu(input=net.a(input=x)))


def many_steps(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    for _ in range(20):
        y = torch.relu(y) + x.sum(1, keepdim=True)
    z = net.b(y)
    for _ in range(20):
        z = torch.relu(z)
    return z


@pytest.mark.parametrize(
    "between",
    [
        residual_in_place,
        unused_result,
        unused_method,
        read_again,
        through_a_view,
        into_an_output,
        unknown_in_place,
        asks_for_a_tensor,
        reads_a_latent_weight,
        keywords_within,
        many_steps,
    ],
    ids=lambda f: f.__name__,
)
def test_forward_methods(between: Callable[..., Any]) -> None:
    x = torch.randn(2, 3, 9, 9)
    check(build(between, x), x)


def test_an_input_changed_in_place_is_changed_once() -> None:
    def between(net: Any, x: Tensor) -> Tensor:
        x.mul_(0.5)
        return net.b(net.a(x))

    x = torch.randn(2, 3, 9, 9)
    check(build(between, x), x)


def test_usual_residual_networks_are_compiled() -> None:
    def between(net: Any, x: Tensor) -> Tensor:
        y = net.relu(net.a(x))
        z = net.b(y)
        z += y
        return net.relu(z)

    x = torch.randn(2, 3, 9, 9)
    assert not check(build(between, x), x).why_not


@pytest.mark.parametrize("batches", [(2, 5), (5, 2), (1, 4), (200, 1)])
def test_two_numbers_of_examples(batches: tuple[int, int]) -> None:
    def between(net: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return net.b(net.a(x)), net.a(y)

    inputs = [torch.randn(n, 3, 9, 9) for n in batches]
    check(build(between, *inputs), *inputs)


def test_two_numbers_of_rows() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.a(y)

    for batches in ((5, 2), (1, 5), (5, 70)):
        inputs = [torch.rand(n, 6) for n in batches]
        model = lowbit.convert(Rows(), 1, 2, keep_float=())
        lowbit.calibrate(model, *inputs)
        check(model.eval(), *inputs)


def test_examples_folded_together_are_observed() -> None:
    def between(net: Any, x: Tensor) -> Tensor:
        return net.b(net.a(x.flatten(0, 1)))

    x = torch.randn(3, 2, 3, 9, 9)
    model = build(between, x)
    compiled = check(model, x)
    assert torch.equal(compiled.observe(x).tensors()["a:codes"], observe(model, x).tensors()["a:codes"])


def test_hooks_are_not_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(2, 3, 9, 9)
    model = build(lambda net, x: net.b(net.a(x)), x)
    model.a.register_forward_hook(lambda module, args, output: output + 1)
    with caplog.at_level(logging.WARNING):
        compiled = check(model, x)
    assert "forward hooks" in compiled.why_not
    assert "forward hooks" in caplog.text


def test_the_default_dtype_does_not_matter() -> None:
    x = torch.randn(2, 3, 9, 9)
    model = build(lambda net, x: net.b(net.a(x)), x)
    compiled = lowbit.compile(model, threads=1)
    with torch.no_grad():
        expected = model(x)
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            assert torch.equal(compiled(x), expected)
        finally:
            torch.set_default_dtype(torch.float32)


def test_autocast_around_the_call() -> None:
    x = torch.randn(2, 3, 9, 9)
    model = build(lambda net, x: net.b(net.a(x)), x)
    compiled = check(model, x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert compiled(x).dtype == model(x).dtype


def test_a_state_dict_is_refused() -> None:
    x = torch.randn(2, 3, 9, 9)
    model = build(lambda net, x: net.b(net.a(x)), x)
    with pytest.raises(lowbit.ConfigError, match="takes no state dict"):
        lowbit.compile(model).load_state_dict(model.state_dict())


def test_a_negated_view() -> None:
    x = torch.randn(2, 3, 9, 9)
    model = build(lambda net, x: net.b(net.a(x)), x)
    with torch.no_grad():
        assert torch.equal(lowbit.compile(model, threads=1)(torch._neg_view(x)), model(-x))


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("layer", [nn.Conv2d(1, 9, (1, 600)), nn.Conv2d(2, 2, 3, stride=(1, 5000), padding=1)])
def test_odd_geometries(layer: nn.Conv2d, bits: int) -> None:
    x = torch.rand(1, layer.in_channels, 4, 900)
    model = lowbit.convert(nn.Sequential(layer), 1, bits, keep_float=())
    lowbit.calibrate(model, x)
    check(model.eval(), x)


def test_the_largest_sums() -> None:
    inputs = 16000
    model = lowbit.convert(nn.Linear(inputs, 4), 8, 8, quantizer="uniform(scale=max-abs)", keep_float=())
    with torch.no_grad():
        model.weight.fill_(1.0)
    x = torch.ones(2, inputs)
    lowbit.calibrate(model, x)
    check(model.eval(), x)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_can_go_on() -> None:
    x = torch.randn(1, 3, 9, 9)
    model = build(lambda net, x: net.b(net.a(x)), x)
    compiled = lowbit.compile(model, threads=2)
    expected = compiled(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(compiled(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
