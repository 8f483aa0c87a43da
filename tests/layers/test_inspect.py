"""Latent weights, scales, calibration and annealing of a converted model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lowbit
from lowbit.layers import FakeQuantize, frozen_statistics, quant_layers


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 16, 3),
    )


def images(seed: int = 0) -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def names(pairs: list[tuple[str, nn.Parameter]]) -> list[str]:
    return [name for name, _ in pairs]


def test_latent_weights_and_scales_are_disjoint_and_the_rest_is_float() -> None:
    model = lowbit.convert(net(), weights=2, activations=2, overrides={"6": {"weights": 32}})
    latent, scales = names(lowbit.latent_parameters(model)), names(lowbit.scale_parameters(model))
    assert latent == ["3.weight"]
    assert scales == [
        "3.weight_quantizer.quantizer.scaling.value",
        "3.input_quantizer.quantizer.scaling.value",
        "6.input_quantizer.quantizer.scaling.value",
    ]
    rest = [name for name, _ in model.named_parameters() if name not in {*latent, *scales}]
    assert rest == [name for name, _ in net().named_parameters() if name != "3.weight"]
    for name, parameter in (*lowbit.latent_parameters(model), *lowbit.scale_parameters(model)):
        assert parameter is model.get_parameter(name)


def test_a_float_model_has_neither() -> None:
    assert lowbit.latent_parameters(net()) == []
    assert lowbit.scale_parameters(net()) == []
    assert list(quant_layers(net())) == []


def test_calibrate_starts_the_scales_where_lsq_starts_them() -> None:
    model = lowbit.convert(net(), weights=3, activations=2)
    lowbit.calibrate(model, images())
    layer = model[3]
    scale = layer.weight_quantizer.quantizer.scaling.value
    torch.testing.assert_close(scale.detach(), 2 * layer.weight.detach().abs().mean() / 3**0.5)
    with torch.no_grad():
        seen = model[2](model[1].train()(model[0](images())))
    torch.testing.assert_close(layer.input_quantizer.quantizer.scaling.value.detach(), 2 * seen.abs().mean() / 3**0.5)


def test_calibrate_leaves_everything_else_alone() -> None:
    model = lowbit.convert(net(), weights=2, activations=2)
    model.eval()
    model[3].train()
    model[1].running_mean.fill_(0.25)
    modes = {name: module.training for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    lowbit.calibrate(model, images())
    assert {name: module.training for name, module in model.named_modules()} == modes
    for name, value in model.state_dict().items():
        learned = name.endswith(("scaling.value", "scaling.initialized"))
        assert torch.equal(value, state[name]) != learned, name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_last_calibration_counts() -> None:
    model = lowbit.convert(net(), weights=2, activations=2)
    lowbit.calibrate(model, 10 * images(1))
    lowbit.calibrate(model, images())
    expected = lowbit.convert(net(), weights=2, activations=2)
    expected.load_state_dict({k: v for k, v in model.state_dict().items() if "scaling" not in k}, strict=True)
    lowbit.calibrate(expected, images())
    state = expected.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_neither_evaluation_nor_zeros_teach_a_scale() -> None:
    model = lowbit.convert(nn.Sequential(nn.Linear(4, 4)), weights=2, activations=2, keep_float=())
    scaling = model[0].input_quantizer.quantizer.scaling
    model.eval()(torch.ones(2, 4))
    assert not scaling.initialized
    model.train()(torch.zeros(2, 4))
    assert not scaling.initialized
    model(torch.ones(2, 4))
    assert scaling.initialized
    torch.testing.assert_close(scaling.value.detach(), torch.tensor(2 / 3**0.5))


def test_a_frozen_layer_stays_as_it_is() -> None:
    model = net()
    model[3].weight.requires_grad_(False)
    frozen = lowbit.convert(model, weights=2, activations=2)[3]
    assert not any(p.requires_grad for p in frozen.weight_quantizer.parameters())
    assert all(p.requires_grad for p in frozen.input_quantizer.parameters())


def test_calibrate_puts_the_modes_back_when_the_model_fails() -> None:
    model = lowbit.convert(net(), weights=2).eval()
    mean = model[1].running_mean.clone()
    with pytest.raises(RuntimeError):
        lowbit.calibrate(model, torch.zeros(4, 1, 9, 9))  # the linear layer takes 8×8 images
    assert not any(module.training for module in model.modules())
    assert torch.equal(model[1].running_mean, mean)


def test_calibrate_takes_several_inputs() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.fc(a + b)

    model = lowbit.convert(Sum(), activations=4, keep_float=())
    lowbit.calibrate(model, torch.ones(2, 3), torch.full((2, 3), 2.0))
    torch.testing.assert_close(model.fc.input_quantizer.quantizer.scaling.value.item(), 2 * 3 / 15**0.5)


def test_frozen_statistics_come_back() -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    with frozen_statistics(model):
        model(images())
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_statistics_come_back_after_an_error() -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    wrong = torch.zeros(4, 1, 9, 9)  # the last layer takes 8×8 images, by then the statistics have moved
    with pytest.raises(RuntimeError), frozen_statistics(model):
        model(wrong)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_set_progress_anneals_every_estimator() -> None:
    model = lowbit.convert(net(), weights=1, activations=1, estimator="reste", activation_quantizer="sign")
    rules = [m for m in model.modules() if isinstance(m, FakeQuantize)]
    assert len(rules) == 4
    lowbit.set_progress(model, 0.5)
    assert [r.estimator.o for r in rules if r.estimator.annealed] == [2.0, 2.0]
    x = images()
    lowbit.set_progress(model, 0.0)
    start = torch.autograd.grad(model(x).square().sum(), model[3].weight)[0]
    lowbit.set_progress(model, 1.0)
    end = torch.autograd.grad(model(x).square().sum(), model[3].weight)[0]
    assert not torch.equal(start, end)


def test_progress_does_not_change_the_values() -> None:
    model = lowbit.convert(net(), weights=1, estimator="reste").eval()
    before = model(images())
    lowbit.set_progress(model, 1.0)
    assert torch.equal(model(images()), before)
