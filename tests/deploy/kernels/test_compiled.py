"""A compiled network computes what the trained one evaluates, bit for bit, on every instruction set."""

from __future__ import annotations

import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
import lowbit.deploy.kernels.compiled as module
from lowbit.deploy import observe, save
from lowbit.deploy.kernels.compiled import CompiledModule
from lowbit.deploy.kernels.loader import instruction_sets, paths
from lowbit.models import build_model

needs_kernels = pytest.mark.skipif(not instruction_sets(), reason="lowbit was installed without its kernels")
SETTINGS: dict[str, dict[str, Any]] = {
    "w1a1": {"weights": 1, "activations": 1},
    "w1a1-sign": {"weights": 1, "activations": 1, "activation_quantizer": "sign"},
    "w1a2": {"weights": 1, "activations": 2, "quantizer": "sign(scale=mean-abs, granularity=channel)"},
    "w2a2": {"weights": 2, "activations": 2, "activation_quantizer": "lsq"},
    "ternary-a2": {"weights": 2, "activations": 2, "quantizer": "ternary"},
    "w3a1-uniform": {"weights": 3, "activations": 1, "quantizer": "uniform(scale=max-abs)"},
    "w4a1-sign": {"weights": 4, "activations": 1, "activation_quantizer": "sign"},
    "w4a4": {"weights": 4, "activations": 4},
    "w8a8": {"weights": 8, "activations": 8, "activation_quantizer": "lsq"},
    "w1a8": {"weights": 1, "activations": 8},
}


class Mixed(nn.Module):
    """Strides, groups, a depthwise and a dilated layer, poolings, residual sums, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.grouped = nn.Conv2d(8, 20, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(20)
        self.depthwise = nn.Conv2d(20, 20, 3, padding=2, dilation=2, groups=20, bias=False)
        self.narrow = nn.Conv2d(20, 33, 1, stride=2)
        self.tall = nn.Conv2d(33, 33, (3, 1), padding=(1, 0))
        self.valid = nn.Conv2d(33, 9, 2)
        self.head = nn.Sequential(nn.Linear(81, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 70), nn.ReLU())
        self.last = nn.Linear(70, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.grouped(self.pool(self.stem(x)))))
        y = self.narrow((self.depthwise(x) + x).relu())
        y = torch.relu(self.tall(y) + y)
        y += y.clone()
        return self.last(self.head(self.valid(y).flatten(1)))


def settle(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Statistics and scales as after some training, slopes of both signs."""
    torch.manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(norm.weight, 0.7, 0.6)
            nn.init.normal_(norm.bias)
    model.train()
    model(torch.randn(8, *shape))
    return model.eval()


def mixed(setting: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    return settle(lowbit.convert(Mixed(), **SETTINGS[setting], **more), (3, 31, 29))


def assert_same(model: nn.Module, compiled: CompiledModule, x: Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
    seen = compiled.observe(x).tensors()
    expected = observe(model, x).tensors()
    assert [key for key in expected if key.endswith(":codes")] == [key for key in seen if key.endswith(":codes")]
    for key, value in seen.items():
        assert torch.equal(value, expected[key]), key


@needs_kernels
@pytest.mark.parametrize("isa", paths())
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_layer_gives_the_same_codes(setting: str, isa: str) -> None:
    model = mixed(setting)
    compiled = CompiledModule(model, threads=1, isa=isa)
    for batch in (1, 3):
        assert_same(model, compiled, torch.randn(batch, 3, 31, 29))
    assert "kernels: convolution" in compiled.describe(torch.randn(1, 3, 31, 29))


@needs_kernels
@pytest.mark.parametrize("setting", ["w1a1", "w1a1-sign", "w2a2", "w4a4"])
@pytest.mark.parametrize("net", ["resnet8", "resnet8(shortcut=B)", "lenet5", "mlp"])
def test_registered_models(net: str, setting: str) -> None:
    shape = (1, 28, 28) if net in ("lenet5", "mlp") else (3, 32, 32)
    float_model = build_model(net, num_classes=10, in_channels=shape[0], image_size=shape[1:], seed=0)
    model = settle(lowbit.convert(float_model, **SETTINGS[setting]), shape)
    assert_same(model, lowbit.compile(model, threads=1), torch.randn(3, *shape))


@needs_kernels
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads: int) -> None:
    model = mixed("w2a2")
    compiled = lowbit.compile(model, threads=threads)
    for batch in (1, 2, 7):
        assert_same(model, compiled, torch.randn(batch, 3, 31, 29))


@needs_kernels
def test_calls_from_several_threads_do_not_mix() -> None:
    model = mixed("w1a1")
    compiled = lowbit.compile(model, threads=2)
    inputs = [torch.randn(2, 3, 31, 29) for _ in range(8)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(compiled, inputs * 4))
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 4, strict=True))


@needs_kernels
def test_first_and_last_layer_with_eight_bits() -> None:
    wide = {"weights": 8, "activations": 8, "activation_quantizer": "lsq"}
    model = mixed("w1a1", overrides={"stem.0": wide, "last": wide})
    compiled = lowbit.compile(model, threads=1)
    x = torch.randn(2, 3, 31, 29)
    assert_same(model, compiled, x)
    described = compiled.describe(x)
    assert "torch: stem" not in described
    assert ", pool," in described  # the pooling is one of the first layer's sums, slopes of both signs or not


@needs_kernels
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 1e-30, 0.5])
def test_extreme_inputs(value: float) -> None:
    model = mixed("w2a2")
    x = torch.full((2, 3, 31, 29), value)
    assert_same(model, lowbit.compile(model, threads=1), x)


@needs_kernels
def test_values_exactly_on_ties() -> None:
    model = lowbit.convert(nn.Conv2d(4, 6, 3, padding=1), 1, 2, keep_float=())
    x = (torch.randint(-3, 9, (2, 4, 9, 9)) / 2).float()
    lowbit.calibrate(model, x)
    with torch.no_grad():
        model.input_quantizer.quantizer.scaling.value.fill_(1.0)  # z = x: every half is a tie
    assert_same(model.eval(), lowbit.compile(model, threads=1), x)


@needs_kernels
def test_layers_the_kernels_do_not_know_run_on_torch() -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rise = nn.Conv1d(2, 4, 3, padding=1)
            self.spread = nn.ConvTranspose2d(1, 4, 3, stride=2)
            self.round = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
            self.known = nn.Conv2d(4, 4, 3, padding=1)
            self.tokens = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.known(self.round(self.spread(torch.tanh(self.rise(x)).unsqueeze(1))))
            return self.tokens(y.permute(0, 2, 3, 1).softmax(-1)).mean((1, 2))

    for setting in ("w1a2", "w1a1-sign"):
        torch.manual_seed(0)
        model = lowbit.convert(Foreign(), **SETTINGS[setting], keep_float=())
        x = torch.randn(3, 2, 8)
        lowbit.calibrate(model, x)
        compiled = lowbit.compile(model.eval(), threads=1)
        assert_same(model, compiled, x)
        described = compiled.describe(x)
        assert "torch: spread" in described
        assert "kernels: convolution" in described


@needs_kernels
@pytest.mark.parametrize(
    "options",
    [
        {"weights": 1},
        {"weights": 32, "activations": 2, "activation_quantizer": "staircase"},
        {"weights": 1, "activations": 2, "activation_quantizer": "staircase"},
        {"weights": 1, "activations": 2, "quantizer": "sign(scale=mean-abs, granularity=group:1)"},
    ],
)
def test_settings_without_whole_number_sums(options: dict[str, Any]) -> None:
    model = settle(lowbit.convert(build_model("resnet8", 10, 3, (32, 32), 0), **options), (3, 32, 32))
    compiled = lowbit.compile(model, threads=1)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


@needs_kernels
def test_a_model_that_cannot_be_traced_runs_on_torch(caplog: pytest.LogCaptureFixture) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) if float(x.sum()) > 0 else x

    model = lowbit.convert(Branching(), 1, 2, keep_float=())
    x = torch.rand(2, 4)
    lowbit.calibrate(model, x)
    with caplog.at_level(logging.WARNING):
        compiled = lowbit.compile(model.eval())
    assert "cannot be traced" in caplog.text
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


def test_without_kernels_everything_runs_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "kernels", lambda: None)
    model = mixed("w1a1")
    compiled = lowbit.compile(model)
    assert "without its kernels" in compiled.why_not
    x = torch.randn(2, 3, 31, 29)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


def test_the_trained_model_is_left_alone() -> None:
    model = mixed("w1a2")
    before = copy.deepcopy(model.state_dict())
    compiled = lowbit.compile(model)
    compiled(torch.randn(1, 3, 31, 29))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.train()
    assert not compiled.training


def test_training_is_refused_with_a_reason() -> None:
    compiled = lowbit.compile(mixed("w1a1"))
    with pytest.raises(lowbit.ConfigError, match="only evaluates"):
        compiled.train()
    assert compiled.eval() is compiled


@needs_kernels
def test_a_compiled_module_can_be_copied_and_pickled() -> None:
    model = mixed("w1a1")
    compiled = lowbit.compile(model, threads=1)
    x = torch.randn(2, 3, 31, 29)
    expected = compiled(x)
    assert torch.equal(copy.deepcopy(compiled)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(compiled))(x), expected)


@needs_kernels
def test_a_loaded_artefact_compiles(tmp_path: Any) -> None:
    model = mixed("w2a2")
    save(model, tmp_path / "net.lowbit")
    loaded = lowbit.load(Mixed(), tmp_path / "net.lowbit")
    assert_same(model, lowbit.compile(loaded, threads=1), torch.randn(2, 3, 31, 29))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(2, 2), {}, "has none"),
        ("not a module", {}, r"takes a torch.nn.Module"),
        (None, {"threads": 0}, "threads=0"),
        (None, {"threads": True}, "threads=True"),
    ],
)
def test_what_cannot_be_compiled(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(lowbit.ConfigError, match=message):
        lowbit.compile(mixed("w1a1") if model is None else model, **options)


def test_scales_that_never_saw_data() -> None:
    with pytest.raises(lowbit.ConfigError, match="never seen data"):
        lowbit.compile(lowbit.convert(Mixed(), 1, 2))
