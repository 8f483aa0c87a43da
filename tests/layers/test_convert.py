"""What `convert` keeps: the original, sharing, names, hooks, and the model's ability to be copied, saved and loaded."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

import lowbit
from lowbit._errors import ConfigError, LowbitError
from lowbit.layers import QuantConv2d, QuantLinear, quant_layers


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(100, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


def images(seed: int = 1) -> Tensor:
    return torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(seed))


class Twice(nn.Module):
    """One module under two names, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.leave = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.second(self.first(self.enter(x)).relu()).relu())


class Tied(nn.Module):
    """Two layers with one weight; the output layer shares the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.embed(x))))


def test_the_original_is_not_touched() -> None:
    model = small_net()
    state = copy.deepcopy(model.state_dict())
    converted = lowbit.convert(model, weights=1, activations=2)
    assert [type(m) for m in model] == [type(m) for m in small_net()]
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.add_(1)
    lowbit.calibrate(converted, images())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert isinstance(converted[3], QuantConv2d)
    assert isinstance(converted[6], QuantLinear)
    assert [type(converted[i]) for i in (0, 8)] == [nn.Conv2d, nn.Linear]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept_and_reaches_the_quantizers(training: bool) -> None:
    converted = lowbit.convert(small_net().train(training), weights=1, activations=2)
    assert {module.training for module in converted.modules()} == {training}


def test_frozen_parameters_stay_frozen() -> None:
    model = small_net()
    model[3].weight.requires_grad_(False)
    converted = lowbit.convert(model)
    assert [name for name, p in converted.named_parameters() if not p.requires_grad] == ["3.weight"]


def test_a_shared_module_stays_shared() -> None:
    converted = lowbit.convert(Twice(), weights=1, activations=2)
    assert converted.first is converted.second
    assert [layer.name for layer in lowbit.plan(Twice()).layers] == ["enter", "first", "leave"]
    assert [name for name, _ in quant_layers(converted)] == ["first"]
    assert [name for name, _ in lowbit.latent_parameters(converted)] == ["first.weight"]
    converted(torch.randn(2, 4)).sum().backward()
    assert converted.first.weight.grad is not None


def test_tied_parameters_stay_tied() -> None:
    torch.manual_seed(0)
    converted = lowbit.convert(Tied(), weights=1, keep_float=())
    assert converted.a.weight is converted.b.weight
    assert converted.head.weight is converted.embed.weight
    assert [name for name, _ in lowbit.latent_parameters(converted)] == ["embed.weight", "a.weight"]
    index = torch.tensor([[1, 2]])
    converted(index).sum().backward()
    reads = converted.embed(index)  # the embedding itself reads the float weight
    assert torch.equal(reads[0, 0], converted.embed.weight[1])


def test_nested_containers() -> None:
    inner = nn.ModuleDict({"conv": nn.Conv2d(2, 2, 1), "list": nn.ModuleList([nn.Conv2d(2, 2, 1), nn.ReLU()])})
    model = nn.Sequential(OrderedDict(stem=nn.Conv2d(2, 2, 1), body=inner, head=nn.Conv2d(2, 2, 1)))
    converted = lowbit.convert(model)
    assert [name for name, _ in quant_layers(converted)] == ["body.conv", "body.list.0"]


def test_the_model_may_be_a_single_layer() -> None:
    layer = nn.Linear(3, 2)
    kept = lowbit.plan(layer)
    assert [(row.name, row.action, row.reason) for row in kept.layers] == [("", "keep", "keep_float: first")]
    assert type(kept.apply()) is nn.Linear
    assert type(lowbit.convert(layer, keep_float=())) is QuantLinear
    assert type(lowbit.convert(layer, overrides={"*": {"weights": 1}})) is QuantLinear


def test_hooks_survive() -> None:
    seen: list[str] = []
    model = small_net()
    model[3].register_forward_hook(lambda *_: seen.append("forward"))
    model[3].register_forward_pre_hook(lambda *_: seen.append("before"))
    model[3].weight.register_hook(lambda grad: seen.append("original"))
    converted = lowbit.convert(model)
    converted(images()).sum().backward()
    assert seen == ["before", "forward"]


@pytest.mark.parametrize("options", [{"weights": 1, "activations": 2}, {"weights": 3, "quantizer": "uniform"}])
def test_deepcopy_and_pickle(options: dict[str, object]) -> None:
    converted = lowbit.convert(small_net(), estimator="ewgs", **options)  # type: ignore[arg-type]
    lowbit.calibrate(converted, images())
    lowbit.set_progress(converted, 0.5)
    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    for twin in (copy.deepcopy(converted), torch.load(file, weights_only=False)):
        assert torch.equal(twin.eval()(images()), converted.eval()(images()))
        with torch.no_grad():
            twin[3].weight.neg_()
        assert not torch.equal(twin(images()), converted(images()))


def test_a_state_dict_round_trip_into_a_fresh_conversion() -> None:
    converted = lowbit.convert(small_net(), weights=2, activations=2)
    lowbit.calibrate(converted, images())
    with torch.no_grad():
        for _, scale in lowbit.scale_parameters(converted):
            scale.mul_(1.5)
    file = io.BytesIO()
    torch.save(converted.state_dict(), file)
    file.seek(0)
    fresh = lowbit.convert(small_net(seed=9), weights=2, activations=2)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(fresh(images()), converted(images()))  # in training mode: no scale starts afresh
    assert fresh.state_dict().keys() == converted.state_dict().keys()


@pytest.mark.parametrize("options", [{"weights": 1, "activations": 2}, {"weights": 4, "quantizer": "lsq"}])
def test_a_float_state_dict_loads_strictly(options: dict[str, object]) -> None:
    trained = small_net(seed=5)
    direct = lowbit.convert(trained, **options)  # type: ignore[arg-type]
    loaded = lowbit.convert(small_net(seed=0), **options)  # type: ignore[arg-type]
    lowbit.calibrate(loaded, images())  # scales of other weights, which loading must forget
    loaded.load_state_dict(trained.state_dict(), strict=True)
    assert set(trained.state_dict()) <= set(loaded.state_dict())
    for model in (direct, loaded):
        lowbit.calibrate(model, images(seed=3))
    assert torch.equal(loaded.eval()(images()), direct.eval()(images()))


def test_a_low_bit_model_is_not_converted_again() -> None:
    converted = lowbit.convert(small_net())
    for act in (lowbit.convert, lowbit.plan):
        with pytest.raises(ConfigError, match="layer '3' is low-bit already: convert\\(\\) takes the float model"):
            act(converted)


def test_something_that_is_no_module() -> None:
    with pytest.raises(ConfigError, match=r"takes a torch.nn.Module; type was given"):
        lowbit.convert(nn.Linear)  # type: ignore[arg-type]


def test_a_subclass_is_left_alone() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    model = nn.Sequential(nn.Linear(3, 3), Scaled(3, 3), nn.Linear(3, 3))
    decided = lowbit.plan(model, keep_float=())
    assert [(row.action, row.reason) for row in decided.layers][1] == (
        "keep",
        "Scaled is not among the kinds that convert",
    )
    assert type(decided.apply()[1]) is Scaled


@pytest.mark.parametrize("old", [True, False])
def test_weight_norm_is_left_alone_with_a_reason(old: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own deprecation of the old form
        (nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm)(model[1])
    decided = lowbit.plan(model, keep_float=())
    assert decided.layers[1].action == "keep"
    assert decided.layers[1].reason == "its weight is computed (weight_norm or the like)"
    assert [layer.action for layer in decided.layers if layer.name in "02"] == ["convert", "convert"]
    converted = decided.apply()
    x = torch.randn(2, 3)
    assert torch.equal(converted[1](x), model[1](x))
    converted(x).sum().backward()
    grads = [p.grad for p in converted[1].parameters()]
    assert all(grad is not None for grad in grads)
    assert all(p.grad is None for p in model.parameters())


def test_a_lazy_layer_waits_for_its_shape() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(3), nn.Linear(3, 3))
    reasons = {row.name: row.reason for row in lowbit.plan(model, keep_float=()).layers}
    assert reasons["1"] == "its shape is not known yet: run the model once"
    model(torch.randn(2, 3))
    assert [row.action for row in lowbit.plan(model, keep_float=()).layers] == ["convert"] * 3


def test_attention_and_recurrent_layers_are_left_with_a_reason() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "rnn": nn.GRU(4, 4), "fc": nn.Linear(4, 4)})
    rows = {row.name: (row.action, row.reason) for row in lowbit.plan(model, keep_float=()).layers}
    assert rows == {
        "attention": ("keep", "MultiheadAttention is not among the kinds that convert"),
        "attention.out_proj": ("keep", "nn.MultiheadAttention reads this weight itself"),
        "rnn": ("keep", "GRU is not among the kinds that convert"),
        "fc": ("convert", "default"),
    }


def test_the_log_says_what_was_converted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lowbit"):
        lowbit.convert(small_net())
    assert caplog.messages == ["2 layers converted; kept in float: 0 (keep_float: first), 8 (keep_float: last)"]


@pytest.mark.parametrize(
    "options",
    [
        {"weights": 0},
        {"weights": 2, "quantizer": "sign"},
        {"overrides": {"6": {"quantizer": "lsq(granularity=channel, bits=9)"}}},
        {"activations": 2, "activation_quantizer": "nope"},
    ],
)
def test_an_error_leaves_everything_as_it_was(options: dict[str, object]) -> None:
    model = small_net()
    with pytest.raises(LowbitError):
        lowbit.convert(model, **options)  # type: ignore[arg-type]
    assert [type(m) for m in model.modules()] == [type(m) for m in small_net().modules()]
    assert model.state_dict().keys() == small_net().state_dict().keys()
    lowbit.convert(model)  # and it still converts
