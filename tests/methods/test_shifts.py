"""The translated batches, and the gradients on them: per translation, all at once or one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lowbit
from lowbit._errors import ConfigError
from lowbit.layers import QuantConv2d, quant_layers
from lowbit.methods._shifts import Shifts, shifted_gradients, translate
from straddling import noise
from tolerances import assert_close

LOSS = nn.CrossEntropyLoss()
F64 = torch.float64


@pytest.mark.parametrize("amount", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_translate_against_a_slow_twin(axis: int, amount: int) -> None:
    inputs = noise(2, 3, 4)
    expected = torch.zeros_like(inputs)
    for i in range(inputs.shape[axis]):
        if 0 <= i - amount < inputs.shape[axis]:
            expected.select(axis, i).copy_(inputs.select(axis, i - amount))
    assert torch.equal(translate(inputs, axis, amount), expected)


def test_translate_keeps_dtype_and_memory_order() -> None:
    tokens = torch.arange(12).reshape(3, 4)
    assert torch.equal(translate(tokens, 1, 1), torch.tensor([[0, 0, 1, 2], [0, 4, 5, 6], [0, 8, 9, 10]]))
    images = noise(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert translate(images, 2, 1).is_contiguous(memory_format=torch.channels_last)


def test_images_move_along_rows_then_columns() -> None:
    shifts, images = Shifts((2, -1, 1, -1)), noise(2, 1, 5, 6)
    assert torch.equal(shifts.apply(images, 0)[:, :, 2:], images[:, :, :-2])
    assert torch.equal(shifts.apply(images, 1)[:, :, :-1], images[:, :, 1:])
    assert torch.equal(shifts.apply(images, 2)[..., 1:], images[..., :-1])
    assert torch.equal(shifts.apply(images, 3)[..., :-1], images[..., 1:])
    assert shifts.coefficients == (1.0, -1 / 3, 1 / 2)


def test_a_single_axis_gives_the_first_quotient_alone() -> None:
    shifts = Shifts(axes=(-1,))
    assert shifts.count == 2
    assert shifts.coefficients == (1.0, -1 / 2)


def twice(inputs: Tensor, direction: str, amount: int) -> Tensor:
    return inputs * (1 + 0.1 * amount) if direction == "k" else inputs + 0.1 * amount


def test_a_transform_of_the_users_own() -> None:
    shifts, inputs = Shifts(transform=twice), noise(3, 4)
    assert torch.equal(shifts.apply(inputs, 0), inputs * 1.1)
    assert torch.equal(shifts.apply(inputs, 3), inputs - 0.1)
    with pytest.raises(ConfigError, match="a tensor of as many examples as it got"):
        Shifts(transform=lambda inputs, direction, amount: inputs[:1]).apply(inputs, 0)
    with pytest.raises(ConfigError, match="takes axes or transform, not both"):
        Shifts(axes=(1,), transform=twice)


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(
        ConfigError, match=r"a shift by 2 moves inputs of shape \(N, 1, 2, 5\) out of sight along axis 2"
    ):
        Shifts((2, 1, 1, -1)).apply(noise(1, 1, 2, 5), 0)
    with pytest.raises(ConfigError, match=r"axes=\(3,\) of method 'ricci': the inputs have the shape \(N, 3, 4\)"):
        Shifts(axes=(3,)).apply(noise(2, 3, 4), 0)
    with pytest.raises(ConfigError, match="state the axis to shift along, for instance axes=-1"):
        Shifts().apply(noise(2, 3, 4), 0)


class Varied(nn.Module):
    """Grouped, depthwise, transposed and one-dimensional convolutions, a layer used twice, a linear layer on tokens."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.tokens = nn.Linear(4, 5)
        self.line = nn.Conv1d(5, 5, 3, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.grouped(x)))
        x = torch.relu(self.depthwise(self.depthwise(x)))
        x = self.up(x).flatten(2).transpose(1, 2)
        x = torch.relu(self.tokens(x)).transpose(1, 2)
        return self.head(self.line(x).mean(-1))


def varied(norm: bool, activations: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return lowbit.convert(Varied(norm).double(), weights=1, activations=activations, keep_float=())


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    return noise(size, 4, 5, 5, dtype=F64), torch.randint(3, (size,), generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, together: bool, micro_batches: int = 1, shifts: Shifts | None = None) -> list[Tensor]:
    weights = [w for _, w in lowbit.latent_parameters(model)]
    return shifted_gradients(model, batch(), LOSS, weights, shifts or Shifts(), together, micro_batches)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_each_translation_has_the_gradient_of_its_own_pass(together: bool, micro_batches: int) -> None:
    """Without batch normalisation a pass over all translations is four passes, whatever the layer's kind."""
    model, shifts = varied(norm=False), Shifts((2, -1, 1, -1))
    found = gradients(model, together, micro_batches, shifts)
    images, labels = batch()
    for number in range(4):
        twin = copy.deepcopy(model)
        LOSS(twin(shifts.apply(images, number)), labels).backward()
        for gradient, (_, w) in zip(found, lowbit.latent_parameters(twin), strict=True):
            assert_close(gradient[number], w.grad, "dense")


def test_together_with_batch_normalisation_against_inputs_and_output_gradients() -> None:
    """The gradient of a part is the sum over its examples of (gradient at the output) × (input), by hooks."""
    model = varied(norm=True)
    found = dict(zip([n for n, _ in lowbit.latent_parameters(model)], gradients(model, together=True), strict=True))
    images, labels = batch()
    layer: QuantConv2d = model.grouped
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        seen.extend([inputs[0], output])

    handle = layer.register_forward_hook(keep)
    moved = torch.cat([Shifts().apply(images, number) for number in range(4)])
    losses = [LOSS(part, labels) for part in model(moved).chunk(4)]
    torch.stack(losses).sum().backward()
    handle.remove()
    inputs, flow = seen[0], seen[1].grad
    for number, part in enumerate(torch.arange(24).chunk(4)):
        expected = torch.nn.grad.conv2d_weight(inputs[part], layer.weight.shape, flow[part], padding=1, groups=2)
        assert_close(found["grouped.weight"][number], expected, "dense")


@pytest.mark.parametrize("together", [False, True])
def test_nothing_is_left_behind(together: bool) -> None:
    model = varied(norm=True, activations=4)
    lowbit.calibrate(model, batch()[0])
    before = copy.deepcopy(model.state_dict())
    gradients(model, together)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    for _, layer in quant_layers(model):
        assert "forward" not in vars(layer)
        assert isinstance(layer.weight, nn.Parameter)


def test_an_error_puts_the_layers_back() -> None:
    model = varied(norm=False)

    def broken(outputs: Tensor, labels: Tensor) -> Tensor:
        raise ZeroDivisionError

    weights = [w for _, w in lowbit.latent_parameters(model)]
    with pytest.raises(ZeroDivisionError):
        shifted_gradients(model, batch(), broken, weights, Shifts(), True, 1)
    assert not any("forward" in vars(layer) for _, layer in quant_layers(model))


class Sequence(nn.Module):
    """Time first, as recurrent nets have it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(0, 1)).mean(0)


def test_inputs_that_do_not_begin_with_the_examples() -> None:
    model = lowbit.convert(Sequence(), keep_float=())
    data = noise(4, 8, 3), torch.tensor([0, 1, 2, 0])
    weights = [w for _, w in lowbit.latent_parameters(model)]
    shifts = Shifts(axes=(1,))
    with pytest.raises(ConfigError, match=r"layer 'inner' gets inputs .* for a batch of 8.* take together=False"):
        # 8 steps of time look like 8 examples: what is refused is a batch of another size
        shifted_gradients(model, (data[0][:, :5], data[1]), LOSS, weights, shifts, True, 1)
    assert shifted_gradients(model, data, LOSS, weights, shifts, False, 1)[0].shape == (2, 4, 3)


def test_a_weight_shared_with_a_float_layer_is_seen() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 4)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.words(x).mean(1))

    model = lowbit.convert(Tied(), keep_float=())
    weights = [w for _, w in lowbit.latent_parameters(model)]
    data = torch.randint(5, (4, 6)), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ConfigError, match=r"layer 'words' shares its weight with a low-bit layer.*take together=False"):
        shifted_gradients(model, data, LOSS, weights, Shifts(axes=(1,)), True, 1)
    assert shifted_gradients(model, data, LOSS, weights, Shifts(axes=(1,)), False, 1)[0].shape == (2, 5, 4)


def test_outputs_that_are_no_tensor() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(x), x

    model = lowbit.convert(Pair(), keep_float=())
    weights = [w for _, w in lowbit.latent_parameters(model)]
    data = noise(4, 3), torch.tensor([0, 1, 2, 0])

    def loss(outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        return LOSS(outputs[0], labels)

    with pytest.raises(ConfigError, match=r"must be one tensor .* take together=False"):
        shifted_gradients(model, data, loss, weights, Shifts(axes=(1,)), True, 1)
    assert shifted_gradients(model, data, loss, weights, Shifts(axes=(1,)), False, 1)[0].shape == (2, 4, 3)
