"""Models that nobody designed for lowbit: they convert, train, save, load, run under autocast and compile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lowbit
from lowbit.layers import quant_layers
from lowbit.methods import build_method


class DepthwiseSeparable(nn.Module):
    """MobileNet in small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        blocks = []
        for inner, outer, stride in ((8, 12, 2), (12, 12, 1)):
            blocks += [
                nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU6(),
            ]
            blocks += [nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU6()]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class VisionTransformer(nn.Module):
    """Patches, torch's own encoder, a linear head."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 4, 16) * 0.02)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.encoder(tokens, src_key_padding_mask=hidden)[:, 0])


class UNet(nn.Module):
    """One step down, one step up, a skip between them; classifies the mean pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 6, 3, padding=1)
        self.down = nn.Conv2d(6, 12, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 3, stride=2, padding=1)
        self.merge = nn.Conv2d(12, 6, 3, padding=1)
        self.leave = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.enter(x).relu()
        coarse = self.down(fine).relu()
        rise = self.up(coarse, output_size=list(fine.shape[-2:])).relu()
        return self.leave(self.merge(torch.cat([fine, rise], 1)).relu()).mean((2, 3))


class Recurrent(nn.Module):
    """Columns of an image through linear layers and an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(24, 16)
        self.mix = nn.Linear(16, 16)
        self.lstm = nn.LSTM(16, 12, batch_first=True)
        self.inner = nn.Linear(12, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        columns = x.flatten(1, 2).transpose(1, 2)
        states, _ = self.lstm(self.mix(self.embed(columns).relu()).relu())
        return self.head(self.inner(states[:, -1].relu()).relu())


W1A2 = {"weights": 1, "activations": 2}
# Inputs of a transformer's linear layers are negative as often as positive.
W2A4 = {"weights": 2, "activations": 4, "activation_quantizer": "lsq"}
MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, object], list[str]]] = {
    "depthwise": (DepthwiseSeparable, W1A2, ["blocks.0", "blocks.3", "blocks.6", "blocks.9"]),
    "depthwise-w2": (DepthwiseSeparable, {"weights": 2, "activations": 2}, [f"blocks.{i}" for i in (0, 3, 6, 9)]),
    "transformer": (VisionTransformer, W2A4, [f"encoder.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]),
    "unet": (UNet, W1A2, ["down", "up", "merge"]),
    "recurrent": (Recurrent, W1A2, ["mix", "inner"]),
}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name: str, seed: int = 0) -> nn.Module:
    factory, options, _ = MODELS[name]
    torch.manual_seed(seed)
    return lowbit.convert(factory(), **options)  # type: ignore[arg-type]


def batch(seed: int = 0, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, size, size, generator=generator), torch.randint(0, 5, (4,), generator=generator)


def train(model: nn.Module, steps: int = 2) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method, loss = build_method("plain"), nn.CrossEntropyLoss()
    model.train()
    return [method.step(model, batch(step), loss, optimizer).loss for step in range(steps)]


@every_model
def test_the_layers_meant_are_converted(name: str) -> None:
    assert [layer for layer, _ in quant_layers(build(name))] == MODELS[name][2]


@every_model
def test_it_trains_two_steps_saves_and_loads(name: str, tmp_path: Path) -> None:
    model = build(name)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    assert all(loss.isfinite() for loss in train(model))
    for key, parameter in (*lowbit.latent_parameters(model), *lowbit.scale_parameters(model)):
        assert not torch.equal(parameter, before[key]), key
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = build(name, seed=1)
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    images, _ = batch(9)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(images), model.eval()(images))
        assert not torch.equal(fresh(images), build(name, seed=1).eval()(images))
    for left, right in zip(train(fresh), train(model), strict=True):
        assert torch.equal(left, right)  # nothing but the state dict decides how training goes on


@every_model
def test_it_trains_under_bf16_autocast(name: str) -> None:
    model = build(name)
    images, labels = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
    assert logits.dtype == torch.bfloat16
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    latent = [p.grad.abs().max() for _, p in lowbit.latent_parameters(model) if p.grad is not None]
    assert min(latent) > 0


@every_model
def test_evaluation_sees_the_quantizers(name: str) -> None:
    """A latent weight that stays within its level changes nothing; one that changes its sign does."""
    model = build(name)
    train(model)
    model.eval()
    images, _ = batch(3)
    with torch.no_grad():
        before = model(images)
        for key, layer in quant_layers(model):
            kept = layer.weight.clone()
            # The discrete values themselves; rounding them towards 0 a little keeps every code.
            layer.weight.copy_(layer.weight_quantizer(kept) * (1 - 1e-3))
            assert not torch.equal(layer.weight, kept)
            assert torch.equal(model(images), before), key
            layer.weight.copy_(-kept)
            assert not torch.equal(model(images), before), key
            layer.weight.copy_(kept)


@pytest.mark.parametrize("guard", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_the_fused_path_of_a_transformer_does_not_bypass_the_quantizers(
    guard: Callable[[], torch.no_grad], masked: bool, norm_first: bool
) -> None:
    torch.manual_seed(0)
    # In float64 the rounding of attention's own fast path, which is float and stays, cannot flip a code.
    model = lowbit.convert(VisionTransformer(norm_first).double(), **W2A4)  # type: ignore[arg-type]
    images = batch()[0].double()
    lowbit.calibrate(model, images)
    hidden = torch.tensor([[False, False, False, True]]).expand(4, 4) if masked else None
    expected = model.train()(images, hidden).detach()
    with guard():
        torch.testing.assert_close(model.eval()(images, hidden), expected)


def test_an_encoder_layer_on_its_own() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True)
    model = lowbit.convert(layer.double(), keep_float=(), **W2A4)  # type: ignore[arg-type]
    tokens = torch.randn(2, 5, 16).double()
    lowbit.calibrate(model, tokens)
    expected = model.train()(tokens).detach()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(tokens), expected)


def test_an_encoder_without_low_bit_layers_keeps_its_fused_path() -> None:
    model = lowbit.convert(VisionTransformer(), weights=32, activations=32)
    assert model.encoder.use_nested_tensor
    assert all(layer.activation_relu_or_gelu == 1 for layer in model.encoder.layers)


def test_the_attention_projection_stays_float_and_says_so() -> None:
    rows = {row.name: row.reason for row in lowbit.plan(VisionTransformer(), **W2A4).layers}  # type: ignore[arg-type]
    assert rows["encoder.layers.0.self_attn.out_proj"] == "nn.MultiheadAttention reads this weight itself"
    assert rows["encoder.layers.0.linear1"] == "default"


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's compiler does it
@pytest.mark.parametrize("name", ["unet"])
def test_it_compiles_once_calibrated(name: str) -> None:
    model, twin = build(name), build(name)
    images, labels = batch()
    for each in (model, twin):
        lowbit.calibrate(each, images)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss, expected = (nn.functional.cross_entropy(m(images), labels) for m in (compiled, twin))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (key, left), right in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, msg=lambda text, key=key: f"{key}: {text}")
    assert all(p.grad is not None and p.grad.abs().max() > 0 for _, p in lowbit.latent_parameters(model))
