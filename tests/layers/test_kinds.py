"""Each kind of low-bit layer computes what the float layer computes on the discrete weight and the discrete input."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lowbit
from lowbit._errors import ConfigError
from lowbit.layers import FakeQuantize, fake_quantize, is_integer
from lowbit.quantizers import PerChannel

KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (4, 9)),
    "conv1d-circular-dilated": (lambda: nn.Conv1d(4, 6, 3, padding=2, dilation=2, padding_mode="circular"), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 7, 8)),
    "conv2d-grouped": (lambda: nn.Conv2d(4, 6, (3, 1), groups=2), (4, 7, 8)),
    "conv2d-depthwise-same": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding="same", bias=False), (4, 7, 8)),
    "conv2d-dilated-reflect": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, padding_mode="reflect"), (4, 7, 8)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 1), stride=(1, 2, 1)), (4, 3, 5, 6)),
    "conv3d-grouped-replicate": (
        lambda: nn.Conv3d(4, 4, 3, padding=1, groups=2, padding_mode="replicate"),
        (4, 3, 5, 6),
    ),
    "transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 5, 6)),
    "transpose2d-grouped": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, dilation=2), (4, 5, 6)),
    "linear": (lambda: nn.Linear(5, 7), (5,)),
    "linear-tokens": (lambda: nn.Linear(5, 7, bias=False), (3, 5)),
}

SETTINGS: dict[str, dict[str, object]] = {
    "w1": {"weights": 1},
    "w1a2": {"weights": 1, "activations": 2},
    "w4a8": {"weights": 4, "activations": 8, "activation_quantizer": "lsq"},
    "w4-channel": {"weights": 4, "quantizer": "lsq(granularity=channel)"},
    "w2-ternary": {"weights": 2, "quantizer": "ternary(granularity=channel)"},
    "a3": {"weights": 32, "activations": 3},
}

every_kind = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, **options: object) -> tuple[nn.Module, nn.Module, Tensor]:
    """A float layer, its calibrated conversion, and an input."""
    torch.manual_seed(0)
    layer, shape = KINDS[kind][0](), KINDS[kind][1]
    x = torch.randn(2, *shape)
    converted = lowbit.convert(layer, keep_float=(), **options)  # type: ignore[arg-type]
    lowbit.calibrate(converted, x)
    return layer, converted, x


def hard(quantize: nn.Module, x: Tensor) -> Tensor:
    """The quantizer's own value, without the layer's machinery."""
    return quantize.quantizer(x).detach() if isinstance(quantize, FakeQuantize) else x


def with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.copy_(weight)
    return twin


@every_kind
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("training", [True, False])
def test_the_output_is_that_of_the_float_layer_on_discrete_numbers(kind: str, setting: str, training: bool) -> None:
    if kind == "transpose2d-grouped" and "channel" in str(SETTINGS[setting]):
        setting = "w1"  # its channels share no axis of the weight: refused, see below
    layer, converted, x = build(kind, **SETTINGS[setting])
    converted.train(training)
    twin = with_weight(layer, hard(converted.weight_quantizer, converted.weight))
    expected = twin(hard(converted.input_quantizer, x))
    if training or not is_integer(converted):
        assert torch.equal(converted(x), expected)
    else:  # a sum of whole numbers, see test_product
        torch.testing.assert_close(converted(x), expected)
    assert not torch.equal(expected, layer(x))  # something was quantized


@every_kind
def test_nothing_changes_at_32_bits(kind: str) -> None:
    layer, converted, x = build(kind, weights=32, activations=32)
    assert type(converted) is type(layer)
    assert torch.equal(converted(x), layer(x))
    assert converted.state_dict().keys() == layer.state_dict().keys()


@every_kind
def test_gradients_are_those_of_the_float_layer_at_the_discrete_weight(kind: str) -> None:
    layer, converted, x = build(kind, weights=1, estimator="identity")
    twin = with_weight(layer, hard(converted.weight_quantizer, converted.weight))
    for module, given in ((converted, x.clone().requires_grad_()), (twin, x.clone().requires_grad_())):
        module(given).square().sum().backward()
        module.register_buffer("given_grad", given.grad)
    assert torch.equal(converted.weight.grad, twin.weight.grad)
    assert torch.equal(converted.given_grad, twin.given_grad)
    assert converted.weight.grad.abs().max() > 0


@every_kind
def test_the_latent_weight_is_the_float_weight(kind: str) -> None:
    layer, converted, _ = build(kind, weights=1, activations=2)
    for name, parameter in layer.named_parameters():
        own = converted.get_parameter(name)
        assert own is not parameter
        assert torch.equal(own, parameter)
    assert layer.extra_repr() == converted.extra_repr()


def test_output_size_of_a_transposed_convolution() -> None:
    layer, converted, x = build("transpose2d", weights=1)
    twin = with_weight(layer, hard(converted.weight_quantizer, converted.weight))
    for size in ([9, 11], [10, 12]):
        result = converted(x, output_size=size)
        assert list(result.shape[-2:]) == size
        assert torch.equal(result, twin(x, output_size=size))


def test_the_channels_of_a_grouped_transposed_convolution_share_no_axis() -> None:
    with pytest.raises(ConfigError, match="a transposed convolution with groups takes granularity 'tensor'"):
        build("transpose2d-grouped", weights=4, quantizer="lsq(granularity=channel)")


def test_the_channels_of_a_transposed_convolution_are_on_axis_one() -> None:
    _, converted, _ = build("transpose2d", weights=4, quantizer="lsq(granularity=channel)")
    assert converted.weight_quantizer.quantizer.granularity == PerChannel(1)
    scale = converted.weight_quantizer.quantizer.scaling.value
    assert scale.shape == (1, converted.weight.shape[1], 1, 1)
    largest = converted.weight.abs().mean((0, 2, 3), keepdim=True)
    torch.testing.assert_close(scale.detach(), 2 * largest / 7**0.5)


def test_zero_padding_adds_the_number_zero() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    converted = lowbit.convert(layer, weights=1, activations=1, activation_quantizer="sign", keep_float=())
    with torch.no_grad():
        converted.weight.fill_(1.0)
    corner = converted(torch.ones(1, 1, 3, 3))[0, 0]
    assert corner.tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("setting", ["w1a2", "w4-channel", "w2-ternary"])
def test_a_model_in_another_dtype_stays_in_it(dtype: torch.dtype, setting: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3).to(dtype)
    converted = lowbit.convert(layer, keep_float=(), **SETTINGS[setting])  # type: ignore[arg-type]
    assert {p.dtype for p in converted.parameters()} == {dtype}
    x = torch.randn(2, 4, 5, 5, dtype=dtype)
    lowbit.calibrate(converted, x)
    result = converted(x)
    assert result.dtype == dtype
    result.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in converted.parameters())


@every_kind
@pytest.mark.parametrize("setting", ["w1a2", "w4a8", "a3"])
def test_large_tensors_take_a_shorter_path_to_the_same_numbers(
    kind: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for fast_from in (1, 1 << 40):
        monkeypatch.setattr(fake_quantize, "FAST_FROM", fast_from)
        _, converted, x = build(kind, **SETTINGS[setting])
        x.requires_grad_()
        assert (converted.input_quantizer.fast_window(x) is not None) == (fast_from == 1)
        output = converted(x)
        output.square().sum().backward()
        results.append((output.detach(), [x.grad, *(p.grad for p in converted.parameters())]))
    (fast, fast_grads), (slow, slow_grads) = results
    assert torch.equal(fast, slow)
    for left, right in zip(fast_grads, slow_grads, strict=True):
        assert left is not None
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
