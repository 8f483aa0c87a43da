"""staircase: the quantized ReLU of Long, Yin, Xin 2021, and its resolution."""

from __future__ import annotations

import math

import pytest
import torch

import lowbit
from lowbit._errors import ConfigError
from lowbit.estimators import build_estimator
from lowbit.quantizers import build_quantizer
from lowbit.quantizers.resolution import SAMPLE, half_gaussian_resolution, lloyd_resolution
from straddling import noise


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("alpha", [1.0, 0.6508, 3.7])
def test_against_the_formula(bits: int, alpha: float) -> None:
    quantizer = build_quantizer(f"staircase(resolution={alpha})", bits)
    top = 2**bits - 1
    x = torch.linspace(
        -2.03 * alpha, (top + 2.01) * alpha, 4001, dtype=torch.float64
    )  # none on a threshold but by luck
    expected = [0 if v <= 0 else min(top, math.ceil(v / alpha)) for v in x.tolist()]
    assert quantizer.codes(x).tolist() == expected
    assert torch.equal(quantizer(x), alpha * torch.tensor(expected, dtype=x.dtype))


def test_the_papers_points() -> None:
    z = torch.tensor([-3.0, -0.0, 0.0, 1e-30, 0.5, 1.0, 1.01, 2.0, 2.5, 3.0, 3.5, 100.0])
    assert build_quantizer("staircase", 2).discretize(z).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("alpha", [0.1, 1 / 3, 0.6508, 1.224, 7.7])
def test_its_own_values_keep_their_codes_whatever_the_resolution(alpha: float) -> None:
    codes = torch.arange(256.0)
    quantizer = build_quantizer(f"staircase(resolution={alpha})", 8)
    assert torch.equal(quantizer.codes(codes * torch.tensor(alpha)), codes.to(torch.int16))


def mse(alpha: float, bits: int, x: torch.Tensor) -> float:
    return float(((x / alpha).round().clamp(0, 2**bits - 1) * alpha - x).square().mean())


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_half_gaussian_fit_is_the_literatures_and_the_best(bits: int) -> None:
    alpha = half_gaussian_resolution(bits)
    assert alpha == pytest.approx({1: 1.2240, 2: 0.6508, 3: 0.3534, 4: 0.1932}[bits], abs=5e-5)
    # The half-Gaussian by its quantiles: no sampling error.
    x = math.sqrt(2) * torch.special.erfinv((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    assert mse(alpha, bits, x) <= min(mse(alpha * f, bits, x) for f in (0.97, 0.99, 1.01, 1.03))
    assert float(lloyd_resolution(x, bits)) == pytest.approx(alpha, rel=0.02)  # of a third of them


@pytest.mark.parametrize("bits", range(5, 9))
def test_the_half_gaussian_fit_is_a_fixed_point_at_every_width(bits: int) -> None:
    alpha = half_gaussian_resolution(bits)
    k = torch.arange(1, 2**bits, dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    t = (k - 0.5) * alpha
    step = normal.log_prob(t).exp().sum() / ((2 * k - 1) * (1 - normal.cdf(t))).sum()
    assert float(step) == pytest.approx(alpha, rel=1e-9)


def test_lloyd_on_data() -> None:
    x = noise(4 * SAMPLE, seed=3)
    assert float(lloyd_resolution(5 * x, 2)) == pytest.approx(5 * half_gaussian_resolution(2), rel=0.02)
    assert float(lloyd_resolution(torch.tensor([-1.0, 0.0, 2.0, 2.0]), 1)) == 2.0
    assert float(lloyd_resolution(torch.tensor([-1.0, 0.0]), 2)) == 0.0


def test_lloyd_sees_all_of_a_tensor_whatever_its_shape() -> None:
    x = noise(64, 1, 64, 64, seed=4)  # a stride of 4 would see every fourth column only
    x[..., ::4] = -1.0
    assert float(lloyd_resolution(x, 2)) == pytest.approx(half_gaussian_resolution(2), rel=0.02)
    uniform = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    alpha = float(lloyd_resolution(uniform, 2))
    assert mse(alpha, 2, uniform) <= min(mse(alpha * f, 2, uniform) for f in (0.95, 1.05))
    assert alpha == pytest.approx(2 / 7, rel=0.03)  # 0 and three levels of the same width, half a width at the bottom


def test_a_fitted_resolution_comes_from_the_first_training_tensor_and_stays() -> None:
    quantizer = build_quantizer("staircase(scale=fitted)", 2).train()
    x = noise(1000)
    quantizer(x)
    first = quantizer.scaling.value.clone()  # type: ignore[union-attr, operator]
    assert float(first) == float(lloyd_resolution(x, 2))
    quantizer(7 * x)
    assert torch.equal(quantizer.scaling.value, first)  # type: ignore[arg-type]
    assert list(quantizer.parameters()) == []
    again = build_quantizer("staircase(scale=fitted)", 2)
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again(x), quantizer(x))


def test_calibrate_fits_every_resolution_of_a_model() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    model = lowbit.convert(net, weights=32, activations=2, activation_quantizer="staircase(scale=fitted)")
    x = noise(64, 4)
    lowbit.calibrate(model, x)
    scaling = model[1].input_quantizer.quantizer.scaling  # type: ignore[union-attr]
    assert float(scaling.value) == float(lloyd_resolution(net[0](x), 2))  # type: ignore[union-attr]


def test_a_learned_resolution_gets_its_gradient_from_autograd() -> None:
    layer = lowbit.FakeQuantize(build_quantizer("staircase(scale=learned)", 2), build_estimator("relu"))
    layer.train()(noise(100))
    scale = layer.quantizer.scaling.value
    assert isinstance(scale, torch.nn.Parameter)
    x = noise(100, seed=1)
    layer(x).sum().backward()
    z = x / scale.detach()
    expected = (layer.quantizer.discretize(z) - z * (z > 0)).sum() / math.sqrt(1 * 3)  # one element per example
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("staircase(resolution=0)", "resolution=0 of quantizer 'staircase': expected a positive number"),
        ("staircase(resolution=-1.5)", "expected a positive number"),
        (
            "staircase(resolution=gaussian)",
            "'gaussian' of quantizer 'staircase': expected a positive number.*half-gaus",
        ),
        ("staircase(scale=learned, resolution=2)", "is for scale=fixed; scale=learned takes it from data"),
        ("staircase(scale=max-abs)", "offers the scale policies fixed, fitted, learned; 'max-abs' was asked for"),
    ],
)
def test_options_that_do_not_fit(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_quantizer(spec, 2)
