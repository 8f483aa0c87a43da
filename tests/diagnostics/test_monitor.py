from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit import CheckpointError, ConfigError
from lowbit.diagnostics import WeightMonitor
from lowbit.estimators import ESTIMATORS, build_estimator
from lowbit.layers import FakeQuantize, QuantLinear
from lowbit.quantizers import build_quantizer
from tolerances import assert_close


def _layer(quantizer: str, bits: int, estimator: str = "identity", shape: tuple[int, int] = (6, 8)) -> QuantLinear:
    quantize = FakeQuantize(build_quantizer(quantizer, bits, shape=shape), build_estimator(estimator))
    layer = QuantLinear(shape[1], shape[0], bias=False, weight_quantizer=quantize, input_quantizer=nn.Identity())
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(bits))
    return layer


def _two(quantizer: str = "sign", bits: int = 1, **options: Any) -> nn.Sequential:
    return nn.Sequential(_layer(quantizer, bits, **options), nn.Linear(6, 6), _layer(quantizer, bits, **options))


def _codes(layer: nn.Module) -> np.ndarray[Any, Any]:
    assert isinstance(layer, QuantLinear)
    assert isinstance(layer.weight_quantizer, FakeQuantize)
    return layer.weight_quantizer.quantizer.codes(layer.weight).numpy().astype(int)


@pytest.mark.parametrize(
    ("quantizer", "bits"), [("sign", 1), ("ternary", 2), ("uniform", 3), ("lsq", 4), ("uniform", 8)]
)
def test_flips_and_oscillation_against_a_slow_twin(quantizer: str, bits: int) -> None:
    model = _two(quantizer, bits)
    monitor = WeightMonitor(model, every=1)
    assert monitor.names == ("0", "2")
    generator = torch.Generator().manual_seed(1)
    seen = [_codes(model[0])]
    last = np.zeros_like(seen[0])
    total = 0.0
    for step in range(12):
        monitor.before_step(step)
        with torch.no_grad():
            for layer in (model[0], model[2]):
                layer.weight += 0.7 * torch.randn(layer.weight.shape, generator=generator)
        figures = monitor.after_step(step)
        seen.append(_codes(model[0]))
        direction = np.sign(seen[-1] - seen[-2])
        returned = (direction != 0) & (last != 0) & (direction != last)
        last = np.where(direction != 0, direction, last)
        assert figures.names == monitor.names
        assert set(figures.values) == {"flip_rate", "oscillation"}
        assert figures.values["flip_rate"][0].item() == pytest.approx((direction != 0).mean())
        assert figures.values["oscillation"][0].item() == pytest.approx(returned.mean())
        total += returned.mean()
    assert total > 0


def test_only_every_so_many_steps_are_seen() -> None:
    model = _two()
    monitor = WeightMonitor(model, every=3)
    rates = []
    for step in range(6):
        monitor.before_step(step)
        with torch.no_grad():
            model[0].weight.neg_()
        figures = monitor.after_step(step)
        rates += [figures.values["flip_rate"].tolist()] if figures.names else []
    assert rates == [[1.0, 0.0], [1.0, 0.0]]  # an odd number of flips in three steps looks like one
    assert WeightMonitor(model, every=0).names == ()
    assert WeightMonitor(nn.Sequential(nn.Linear(2, 2)), every=1).names == ()


def test_a_monitor_goes_on_from_its_state() -> None:
    model = _two("uniform", 3)
    whole, first = WeightMonitor(model, every=1), WeightMonitor(model, every=1)
    monitors = [whole, first]
    for step in range(6):
        if step == 3:
            second = WeightMonitor(model, every=1)
            second.load_state_dict(first.state_dict())
            monitors = [whole, second]
        for monitor in monitors:
            monitor.before_step(step)
        with torch.no_grad():
            model[0].weight.mul_(-1.1)
        one, other = (monitor.after_step(step).values for monitor in monitors)
        assert one["oscillation"][0] > 0 or step == 0
        assert all(torch.equal(one[name], other[name]) for name in one)
    state = whole.state_dict()
    assert sum(value.element_size() for value in state.values()) == 2  # bytes per weight
    with pytest.raises(CheckpointError, match="96 low-bit weights, the model has 48"):
        WeightMonitor(model[0], every=1).load_state_dict(state)
    assert WeightMonitor(model, every=1).state_dict() == {}


class _Wrapper(nn.Module):
    def __init__(self, name: str, inside: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inside)


def test_names_are_those_of_the_bare_model() -> None:
    model = nn.Sequential(nn.Sequential(_layer("sign", 1)))
    wrapped = _Wrapper("_forward_module", _Wrapper("module", _Wrapper("_orig_mod", model)))
    assert WeightMonitor(wrapped).names == ("0.0",)


def test_misuse_is_reported() -> None:
    with pytest.raises(ConfigError, match="every=-1 of WeightMonitor"):
        WeightMonitor(_two(), every=-1)
    with pytest.raises(ConfigError, match="without before_step"):
        WeightMonitor(_two(), every=1).after_step(0)


QUANTIZERS = [("sign", 1), ("uniform", 3), ("uniform(transform=tanh)", 3), ("lsq(granularity=channel)", 3)]


@pytest.mark.parametrize(("quantizer", "bits"), QUANTIZERS)
@pytest.mark.parametrize("options", ["", "block=channel", "block=5", "inverse=weak, block=channel", "tau=dominance"])
def test_the_correction_is_that_of_the_gradient_before_the_step(quantizer: str, bits: int, options: str) -> None:
    inputs = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def layer(estimator: str) -> QuantLinear:
        return _layer(quantizer, bits, estimator).double()

    natural, plain = layer(f"lne({options})"), layer("identity")
    optimizer = torch.optim.SGD(natural.parameters(), lr=0.3)
    monitor = WeightMonitor(nn.Sequential(natural), every=1)
    monitor.before_step(0)
    F.cross_entropy(natural(inputs), torch.arange(5)).backward()  # type: ignore[no-untyped-call]
    F.cross_entropy(plain(inputs), torch.arange(5)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    figures = monitor.after_step(0).values
    assert natural.weight.grad is not None
    assert plain.weight.grad is not None
    # The metric lives in step units z: with tanh and with scales per channel, ∂z/∂w is not one number.
    unit: Tensor | float = 1.0
    if "tanh" in quantizer:
        unit = 1 - plain.weight.detach().tanh().square()
    elif "channel" in quantizer:
        assert isinstance(plain.weight_quantizer, FakeQuantize)
        unit = 1 / plain.weight_quantizer.quantizer.scale(plain.weight).detach()
    with_metric, without = natural.weight.grad / unit, plain.weight.grad / unit
    expected = (with_metric - without).norm() / without.norm()
    assert expected > 1e-4
    assert_close(figures["correction"][0], expected, "dense")


def test_the_metric_of_an_estimator_is_the_one_its_vjp_inverts() -> None:
    quantizer = build_quantizer("sign", 1)
    z = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    grad = torch.cos(7 * z)
    found = 0
    for _, cls in ESTIMATORS.items():
        for estimator in cls.examples():
            metric = estimator.metric(z, quantizer.grid)
            if metric is None:
                continue
            found += 1
            natural = estimator.vjp(z, quantizer.discretize(z), grad, quantizer.grid).reshape(-1)
            padded = F.pad(grad.reshape(-1), (0, metric.u.numel() - z.numel())).reshape(metric.u.shape)
            assert_close(metric.solve(padded).reshape(-1)[: z.numel()], natural, "dense")
    assert found > 1


def test_norm_and_margin_are_those_of_the_worst_block() -> None:
    layer = _layer("sign", 1, "lne(tau=0.3, block=channel, inverse=weak)").double()
    layer.weight.requires_grad_(False)  # no gradient: no correction, but the metric is there
    monitor = WeightMonitor(nn.Sequential(layer, _layer("sign", 1).double()), every=1)
    monitor.before_step(0)
    figures = monitor.after_step(0).values
    u = torch.tanh(0.3 * layer.weight)
    g = torch.eye(8, dtype=torch.float64) - u.unsqueeze(2) * u.unsqueeze(1)
    diagonal = g.diagonal(dim1=1, dim2=2)
    margin = (diagonal - (g.abs().sum(2) - diagonal.abs())).amin()
    assert_close(figures["norm_squared"][0], u.square().sum(1).amax(), "dense")
    assert_close(figures["dominance_margin"][0], margin, "dense")
    assert all(figures[name][1].isnan() for name in ("correction", "norm_squared", "dominance_margin"))
    assert figures["correction"][0].isnan()


def test_watching_changes_nothing() -> None:
    def trained(every: int) -> dict[str, Tensor]:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 4))
        model = lowbit.convert(net, 3, 2, estimator="lne(block=channel)")
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        monitor = WeightMonitor(model, every)
        for step in range(6):
            monitor.before_step(step)
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(16, 8)), torch.arange(16) % 4).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            monitor.after_step(step)
        return model.state_dict()

    watched, alone = trained(1), trained(0)
    assert all(torch.equal(watched[name], value) for name, value in alone.items())
