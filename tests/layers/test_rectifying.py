"""A quantizer that rectifies takes the place of the ReLUs."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

import lowbit
from lowbit._errors import ConfigError, UnknownNameError
from lowbit.layers import LayerSummary, QuantReLU
from lowbit.models import build_model
from straddling import noise


def net() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 4, 3, padding=1),
            relu1=nn.ReLU(inplace=True),
            pool=nn.MaxPool2d(2),
            conv2=nn.Conv2d(4, 6, 3, padding=1),
            relu2=nn.ReLU6(),
            flatten=nn.Flatten(),
            classifier=nn.Linear(6 * 16, 3),
        )
    )


def convert(model: nn.Module, **options: object) -> nn.Module:
    chosen = {"weights": 32, "activations": 2, "activation_quantizer": "staircase", **options}
    return lowbit.convert(model, **chosen)  # type: ignore[arg-type]


def test_every_relu_is_replaced_and_no_input_is_quantized() -> None:
    model = convert(net())
    assert [name for name, m in model.named_modules() if isinstance(m, QuantReLU)] == ["relu1", "relu2"]
    assert type(model.conv2) is nn.Conv2d
    x = noise(2, 1, 8, 8)
    assert len(model[:2](x).unique()) == 4  # type: ignore[index]
    low_bit = convert(net(), weights=1)
    assert type(low_bit.conv2.input_quantizer) is nn.Identity  # type: ignore[union-attr]


def test_the_estimator_decides_what_flows_back_below_zero() -> None:
    x = noise(200, 4)
    for estimator, passes in (("identity", True), ("relu", False), ("clipped", False)):
        model = convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), activation_estimator=estimator, keep_float=())
        z = model[0](x).detach().requires_grad_()  # type: ignore[index]
        model[1](z).sum().backward()  # type: ignore[index]
        assert bool(z.grad[z < 0].any()) == passes, estimator  # type: ignore[index]
        assert bool(z.grad[z > 0].any())  # type: ignore[index]
    # Behind a ReLU, which stops the gradient itself, identity would have been no identity.
    behind = lowbit.convert(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        weights=32,
        activations=2,
        activation_estimator="identity",
        keep_float=(),
        overrides={"0": "float"},
    )
    z = noise(200, 4).requires_grad_()
    behind[2](behind[1](z)).sum().backward()  # type: ignore[index]
    assert not z.grad[z < 0].any()  # type: ignore[index]


def test_the_plan_names_the_activation_functions() -> None:
    plan = lowbit.plan(net(), weights=1, activations=2, activation_quantizer="staircase")
    assert [(e.name, e.kind, e.action, e.weight_bits, e.activation_bits) for e in plan.layers] == [
        ("conv1", "Conv2d", "keep", 32, 32),
        ("relu1", "ReLU", "convert", None, 2),
        ("conv2", "Conv2d", "convert", 1, 32),
        ("relu2", "ReLU6", "convert", None, 2),
        ("classifier", "Linear", "keep", 32, 32),
    ]
    assert plan.describe().startswith("1 layers converted, 2 activation functions replaced; kept in float: conv1")
    assert "relu2" in str(plan)
    assert "relu" not in str(lowbit.plan(net(), weights=1, activations=2))  # not touched, not mentioned


def test_names_reach_activation_functions_too() -> None:
    model = convert(net(), overrides={"relu1": {"activations": 4}, "relu2": "float"})
    assert model.relu1.input_quantizer.quantizer.grid.high == 15  # type: ignore[union-attr]
    assert type(model.relu2) is nn.ReLU6
    assert type(convert(net(), keep_float=("relu1",)).relu1) is nn.ReLU
    mixed = lowbit.convert(
        net(), weights=32, activations=2, overrides={"relu2": {"activation_quantizer": "staircase"}}, keep_float=()
    )
    assert isinstance(mixed.relu2, QuantReLU)
    assert type(mixed.relu1) is nn.ReLU
    assert isinstance(mixed.conv2.input_quantizer, lowbit.FakeQuantize)  # type: ignore[union-attr]
    with pytest.raises(UnknownNameError, match="'relu3': did you mean 'relu"):
        convert(net(), overrides={"relu3": "float"})


def test_a_shared_relu_is_replaced_everywhere_and_the_original_stays() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu)
    converted = convert(model)
    assert isinstance(converted[1], QuantReLU)  # type: ignore[index]
    assert converted[3] is converted[1]  # type: ignore[index]
    assert type(model[1]) is nn.ReLU


def test_float_weights_load_and_the_mode_is_kept() -> None:
    model = net()
    converted = convert(net(), activation_quantizer="staircase(scale=learned)")
    converted.load_state_dict(model.state_dict(), strict=True)
    assert converted.relu1.training  # type: ignore[union-attr]
    assert not convert(net().eval()).relu1.input_quantizer.training  # type: ignore[union-attr]
    assert convert(net().double()).double()(noise(1, 1, 8, 8, dtype=torch.float64)).dtype == torch.float64


# torch's own tracer instantiates the Function; outside a suite that turns warnings into errors nobody sees it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_it_trains_and_compiles() -> None:
    model = convert(build_model("resnet8(width=4)", 10, 3, (16, 16), seed=0))
    x = noise(4, 3, 16, 16)
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_the_summary_follows_the_bits_to_the_layer_that_reads_them() -> None:
    model = convert(net(), weights=1, activation_quantizer="staircase(scale=learned)")
    found = {layer.name: layer for layer in lowbit.summary(model, (1, 8, 8), show=False).layers}
    assert (found["conv1"].activation_bits, found["conv2"].activation_bits) == (32, 2)  # through the pooling
    assert found["classifier"].activation_bits == 2  # through the flattening
    assert found["relu1"] == LayerSummary("relu1", "QuantReLU", 32, 2, 1, 0, 4, 0)  # the learned resolution
    fixed = {layer.name: layer for layer in lowbit.summary(convert(net()), (1, 8, 8), show=False).layers}
    assert fixed["relu1"].parameters == 0


def test_a_model_without_relu_modules_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"takes the place of nn.ReLU modules, and this model has none"):
        convert(nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 3)))
    convert(nn.Sequential(nn.Linear(3, 3), nn.GELU()), activations=32)  # nothing is asked of it


@pytest.mark.filterwarnings("ignore:.*nested tensor:UserWarning")
def test_a_transformers_fused_evaluation_does_not_pass_the_staircase_by() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=nn.ReLU(), batch_first=True)
    model = convert(layer)
    x = noise(2, 5, 8)
    with torch.no_grad():
        trained, evaluated = model.train()(x), model.eval()(x)
        torch.testing.assert_close(trained, evaluated)
        assert not torch.allclose(evaluated, layer.eval()(x))


def test_what_is_low_bit_already_and_what_means_no_relu_is_refused() -> None:
    with pytest.raises(ConfigError, match="activation 'relu1' is low-bit already"):
        lowbit.convert(convert(net()), weights=2, activations=2)
    with pytest.raises(ConfigError, match=r"the overrides give layer 'conv2' a quantizer that rectifies"):
        lowbit.convert(net(), activations=2, overrides={"conv2": {"activation_quantizer": "staircase"}})


def test_the_summary_tells_a_relus_output_from_its_input() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.relu = nn.Linear(4, 4), nn.ReLU()
            self.low, self.high = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            return self.low(self.relu(h)) + self.high(h)

    found = {layer.name: layer.activation_bits for layer in lowbit.summary(convert(Fork()), (4,), show=False).layers}
    assert (found["low"], found["high"]) == (2, 32)


def test_an_estimator_that_is_not_defined_for_the_quantizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer 'relu1': estimator 'reste' is defined for the sign quantizer only"):
        convert(net(), activation_estimator="reste")
    with pytest.raises(ConfigError, match=r"'relu' is defined for staircases that rise from 0 .* codes from -2 to 1"):
        convert(net(), activation_quantizer="lsq", activation_estimator="relu", keep_float=())
