from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit import ConfigError
from lowbit.diagnostics import gradient_mismatch
from lowbit.estimators import build_estimator
from lowbit.layers import FakeQuantize, QuantLinear
from lowbit.quantizers import build_quantizer


def _layer(quantizer: str, bits: int, estimator: str, weight: Tensor) -> QuantLinear:
    quantize = FakeQuantize(build_quantizer(quantizer, bits, shape=tuple(weight.shape)), build_estimator(estimator))
    outputs, inputs = weight.shape
    layer = QuantLinear(inputs, outputs, bias=False, weight_quantizer=quantize, input_quantizer=nn.Identity())
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _cosine(model: nn.Module, batch: tuple[Tensor, Tensor], loss: Any = F.mse_loss, samples: int = 1000) -> float:
    figures = gradient_mismatch(model, batch, loss, samples, _generator())
    assert list(figures.values) == ["mismatch_cosine"]
    return float(figures.values["mismatch_cosine"][0])


@pytest.mark.parametrize(("quantizer", "bits"), [("sign", 1), ("sign(scale=mean-abs)", 1), ("lsq", 2), ("uniform", 4)])
def test_where_the_loss_is_linear_the_identity_is_right(quantizer: str, bits: int) -> None:
    weight = torch.randn(4, 6, generator=_generator(1))
    batch = torch.randn(5, 6, generator=_generator(2)), torch.randn(5, 4, generator=_generator(3))
    model = nn.Sequential(_layer(quantizer, bits, "identity", weight))
    assert _cosine(model, batch, lambda y, c: (y * c).sum()) == pytest.approx(1, abs=1e-9)
    assert _cosine(model, batch, lambda y, c: (y * c).sum(), samples=2) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("progress", [0.0, 0.3])
def test_the_loss_is_that_of_the_codes_where_the_forward_pass_is_still_on_its_way(progress: float) -> None:
    batch = torch.randn(5, 6, generator=_generator(2)), torch.randn(5, 4, generator=_generator(3))
    model = nn.Sequential(_layer("sign", 1, "md-tanh(beta_end=10)", torch.randn(4, 6, generator=_generator(1)))).train()
    lowbit.set_progress(model, progress)
    assert _cosine(model, batch, lambda y, c: (y * c).sum()) == pytest.approx(1, abs=1e-9)


def test_a_gradient_cut_off_by_the_estimator_shows() -> None:
    weight = torch.tensor([[0.5, -2.0, 0.25, 3.0]])  # clipped lets the first and the third pass
    inputs = torch.tensor([[1.0, 2.0, -3.0, 4.0]])
    model = _layer("sign", 1, "clipped", weight)
    cosine = _cosine(model, (inputs, torch.zeros(1)), lambda y, _: y.sum())
    assert cosine == pytest.approx(math.sqrt((1 + 9) / (1 + 4 + 9 + 16)))


@pytest.mark.parametrize(("quantizer", "bits"), [("sign", 1), ("uniform", 3)])
def test_where_the_loss_is_quadratic_the_answer_is_known(quantizer: str, bits: int) -> None:
    """(L(q + d) − L(q − e))/(d + e) = ∂L/∂q + H (d − e)/2 for one weight with the second derivative H."""
    weight = torch.randn(3, 5, generator=_generator(4)).double()
    weight[0, 0], weight[1, 1] = 4, -4  # both ends of the grid
    inputs = torch.randn(7, 5, generator=_generator(5)).double()
    labels = torch.randn(7, 3, generator=_generator(6)).double()
    layer = _layer(quantizer, bits, "identity", weight).double()
    assert isinstance(layer.weight_quantizer, FakeQuantize)
    q = layer.weight_quantizer.quantizer(layer.weight).detach()
    slope = (inputs @ q.T - labels).T @ inputs
    curvature = inputs.square().sum(0).expand_as(q)
    gap = 2.0 if bits == 1 else 2 / 7
    up, down = torch.where(q > 1 - 1e-9, 0, gap), torch.where(q < -1 + 1e-9, 0, gap)
    assert (up == 0).any()
    assert (down == 0).any()
    expected = F.cosine_similarity(slope.reshape(-1), (slope + curvature * (up - down) / 2).reshape(-1), dim=0)
    assert 0.2 < expected < 0.999
    found = _cosine(layer, (inputs, labels), lambda y, t: (y - t).square().sum() / 2)
    assert found == pytest.approx(float(expected), abs=1e-9)


def _net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(96, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip
    return lowbit.convert(net, 2, 3)


def test_the_model_and_the_random_numbers_stay_as_they_are() -> None:
    model = _net()
    batch = torch.randn(12, 1, 8, 8), torch.arange(12) % 4
    F.cross_entropy(model(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    quantizers = [module for module in model.modules() if isinstance(module, FakeQuantize)]
    figures = gradient_mismatch(model, batch, F.cross_entropy, 4, _generator())
    assert figures.names == ("3", "8")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is g is None or torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert model.training
    assert [module for module in model.modules() if isinstance(module, FakeQuantize)] == quantizers
    assert all(p.dtype == torch.float32 for p in model.parameters())
    # Dropout draws from the generator's seed, not from torch's own numbers.
    torch.manual_seed(99)
    again = gradient_mismatch(model, batch, F.cross_entropy, 4, _generator())
    other = gradient_mismatch(model, batch, F.cross_entropy, 4, _generator(1))
    cosines = figures.values["mismatch_cosine"]
    assert torch.equal(again.values["mismatch_cosine"], cosines)
    assert not torch.equal(other.values["mismatch_cosine"], cosines)
    assert (cosines.abs() <= 1 + 1e-12).all()


def test_where_the_loss_does_not_depend_on_the_weights_there_is_no_cosine() -> None:
    weight = torch.ones(2, 3)
    net = nn.Sequential(_layer("sign", 1, "identity", weight))
    silent = gradient_mismatch(net, (torch.zeros(1, 3), torch.zeros(1)), lambda y, _: y.sum(), 3, _generator())
    assert silent.values["mismatch_cosine"].isnan().all()
    float_net = gradient_mismatch(nn.Linear(2, 2), (torch.zeros(1, 2), torch.zeros(1)), F.mse_loss, 2, _generator())
    assert float_net.names == ()


def test_one_weight_has_no_direction() -> None:
    with pytest.raises(ConfigError, match="samples=1 of gradient_mismatch: a cosine needs 2"):
        gradient_mismatch(_net(), (torch.zeros(1, 1, 8, 8), torch.zeros(1)), F.mse_loss, 1, _generator())
