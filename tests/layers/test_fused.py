"""The fast path of FakeQuantize against the generic one, its slow twin."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks._measure import peak_mib
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lowbit
from lowbit.estimators import AbstractEstimator, build_estimator
from lowbit.estimators.clipped import Clipped
from lowbit.estimators.identity import Identity
from lowbit.estimators.relu import ReLU
from lowbit.layers import fake_quantize, fused
from lowbit.quantizers import build_quantizer

SHAPE = (3, 5, 17, 19)


def straddling(grid_high: int, step: float) -> Tensor:
    """Values on both sides of every tie and of both ends, the ends and infinitesimally beside them, and zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator) * grid_high * step
    ends = torch.tensor([-grid_high - 1, -grid_high, -1, 0, 1, grid_high, grid_high + 1]) * step
    ties = (torch.arange(-grid_high - 2, grid_high + 2) + 0.5) * step
    special = torch.cat([ends, ties, torch.zeros(3)])
    special = torch.cat(
        [special, special.nextafter(torch.tensor(math.inf)), special.nextafter(torch.tensor(-math.inf))]
    )
    x.view(-1)[: len(special)] = special
    return x


def both_ways(
    module: lowbit.FakeQuantize, x: Tensor, grad: Tensor, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Tensor, Tensor, Tensor]]:
    results = []
    for smallest in (0, 1 << 40):
        monkeypatch.setattr(fake_quantize, "FAST_FROM", smallest)
        module.zero_grad()
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        values = module(leaf)
        assert (type(values.grad_fn).__name__ == "_FakeQuantizeBackward") == (smallest == 0)
        values.backward(grad)
        assert leaf.grad is not None
        scale_grad = module.quantizer.scaling.value.grad
        results.append((values.detach(), leaf.grad, scale_grad))
    return results


EVERYWHERE = (Clipped(), Clipped(c=1.5), Identity())
WINDOWED = [(spec, e) for spec in ("unsigned", "lsq", "staircase(scale=learned)") for e in EVERYWHERE]
WINDOWED += [("unsigned", ReLU()), ("staircase(scale=learned)", ReLU())]


@pytest.mark.parametrize(("spec", "estimator"), WINDOWED, ids=str)
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
@pytest.mark.parametrize("step", [0.25, 0.1, 3.7])
def test_values_bit_for_bit_and_gradients_to_rounding(
    spec: str, bits: int, estimator: AbstractEstimator, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spec == "lsq" and bits == 1:
        bits = 4
    module = lowbit.FakeQuantize(build_quantizer(spec, bits), estimator)
    module(torch.ones(SHAPE))
    module.quantizer.scaling.value.data.fill_(step)
    x = straddling(module.quantizer.grid.high, step)
    grad = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    (fast, fast_x, fast_s), (slow, slow_x, slow_s) = both_ways(module, x, grad, monkeypatch)
    assert torch.equal(fast, slow)
    # The gradient is the incoming one or 0 in both; the generic path multiplies it by s·(1/s) on the way.
    assert torch.equal(fast_x == 0, slow_x == 0)
    torch.testing.assert_close(fast_x, slow_x, rtol=4e-7, atol=0)
    terms = grad.abs().sum() * module.quantizer.grid.high  # the sum may cancel: judge by the size of what is summed
    assert (fast_s - slow_s).abs() <= 1e-6 * terms


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "strided", "vector"])
@pytest.mark.parametrize("grad_layout", ["contiguous", "channels_last"])
def test_every_memory_layout(layout: str, grad_layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = lowbit.FakeQuantize(build_quantizer("unsigned", 2), Clipped())
    x = straddling(3, 0.5)
    grad = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        x, grad = x.transpose(1, 2), grad.transpose(1, 2)
    elif layout == "strided":
        x, grad = x[:, :, ::2], grad[:, :, ::2]
    elif layout == "vector":
        x, grad = x.reshape(-1), grad.reshape(-1)
    if grad_layout == "channels_last" and grad.ndim == 4:
        grad = grad.contiguous(memory_format=torch.channels_last)
    (fast, fast_x, _), (slow, slow_x, _) = both_ways(module, x, grad, monkeypatch)
    assert torch.equal(fast, slow)
    torch.testing.assert_close(fast_x, slow_x, rtol=4e-7, atol=0)


def test_several_pieces_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module = lowbit.FakeQuantize(build_quantizer("unsigned", 2), Clipped())
    x, grad = straddling(3, 0.5), torch.ones(SHAPE)
    whole = both_ways(module, x, grad, monkeypatch)[0]
    monkeypatch.setattr(fused, "PIECE", 100)
    pieces = both_ways(module, x, grad, monkeypatch)[0]
    assert torch.equal(whole[0], pieces[0])
    assert torch.equal(whole[1], pieces[1])
    torch.testing.assert_close(whole[2], pieces[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inverse", [1.0, 3.0, 0.3, 7.3e-3, 123.456])
def test_the_bounds_are_the_first_numbers_outside(inverse: float) -> None:
    step = torch.tensor(inverse)
    low, high = (torch.tensor(bound) for bound in fused._bounds((-2.0, 3.0), inverse))
    up, down = torch.tensor(math.inf), torch.tensor(-math.inf)
    assert high * step > 3 >= high.nextafter(down) * step
    assert low * step < -2 <= low.nextafter(up) * step


def quantized_conv(**options: object) -> nn.Module:
    model = lowbit.convert(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), 32, 2, keep_float=(), **options)
    lowbit.calibrate(model, torch.rand(8, 4, 50, 50))
    return model


def test_what_the_convolution_saves_is_not_the_quantized_copy() -> None:
    float_model = nn.Sequential(*(m for _ in range(6) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())))
    low_bit = lowbit.convert(float_model, 32, 2, keep_float=("first",))
    x = torch.rand(8, 8, 64, 64)
    lowbit.calibrate(low_bit, x)
    peaks = []
    for model in (float_model, low_bit):

        def step(model: nn.Module = model) -> None:
            model(x).sum().backward()

        step()
        peaks.append(peak_mib(step))
    assert peaks[1] < 1.25 * peaks[0]


def test_an_input_changed_in_place_is_an_error_and_not_a_wrong_gradient() -> None:
    model = quantized_conv()
    x = torch.rand(8, 4, 50, 50)
    output = model(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_with_nothing_to_learn_before_it_the_copy_is_kept() -> None:
    model = quantized_conv()
    model[0].input_quantizer.requires_grad_(False)
    x = torch.rand(8, 4, 50, 50)
    output = model(x)
    expected = torch.autograd.grad(output.sum(), model[0].weight, retain_graph=True)[0]
    x.add_(1)
    assert torch.equal(torch.autograd.grad(output.sum(), model[0].weight)[0], expected)


def test_differentiating_twice_gives_what_the_generic_path_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    module = lowbit.FakeQuantize(build_quantizer("lsq", 3), build_estimator("clipped"))
    x = straddling(3, 0.4)
    module(x)
    found = []
    for smallest in (0, 1 << 40):
        monkeypatch.setattr(fake_quantize, "FAST_FROM", smallest)
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad((module(leaf) ** 2).sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad((first**2).sum(), leaf)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert found[0].abs().max() > 0


def test_a_gradient_penalty_through_a_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized_conv()
    x = torch.rand(8, 4, 50, 50)
    found = []
    for smallest in (0, 1 << 40):
        monkeypatch.setattr(fake_quantize, "FAST_FROM", smallest)
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(model(leaf).square().sum(), leaf, create_graph=True)
        model.zero_grad()
        first.square().sum().backward()
        found.append(model[0].weight.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3)


def test_activation_checkpointing() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), *quantized_conv())
    x = torch.rand(8, 4, 52, 52)
    found = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        run(x).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_half_precision_inputs_get_the_codes_of_float32(bits: int) -> None:
    module = lowbit.FakeQuantize(build_quantizer("unsigned", bits), Clipped())
    x = torch.rand(64, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    module(x)
    expected = module.quantizer.codes(x.float())
    values = module(x)
    assert values.dtype == torch.bfloat16
    assert torch.equal(values, (expected * module.quantizer.scaling.value).bfloat16())


@pytest.mark.filterwarnings("default:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does it
def test_transforms_and_compilation_take_the_generic_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_quantize, "FAST_FROM", 0)
    model = quantized_conv()
    x = torch.rand(3, 2, 4, 50, 50)
    expected = torch.stack([model(one) for one in x])
    torch.testing.assert_close(torch.func.vmap(model)(x), expected)
    grad = torch.func.grad(lambda one: model(one).square().sum())(x[0])
    leaf = x[0].clone().requires_grad_()
    torch.testing.assert_close(grad, torch.autograd.grad(model(leaf).square().sum(), leaf)[0])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x[0]), expected[0])


def test_negative_inputs_to_an_unsigned_quantizer_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    model = lowbit.convert(nn.Sequential(nn.Linear(4, 4)), 1, 2, keep_float=())
    model(-torch.ones(2, 4))
    model(-torch.ones(2, 4))
    assert len(caplog.records) == 1
    assert "the input of layer '0': 100 %" in caplog.text
    assert "activation_quantizer='lsq'" in caplog.text
    caplog.clear()
    lowbit.convert(nn.Sequential(nn.Linear(4, 4)), 1, 2, keep_float=(), activation_quantizer="lsq")(-torch.ones(2, 4))
    assert not caplog.records
