"""What holds for every registered model. A new model is tested here without a line being added."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lowbit._errors import LowbitError
from lowbit.models import MODELS, build_model

SIZES = [(1, (8, 8)), (1, (28, 28)), (3, (32, 32)), (2, (9, 14))]
PARAMETRIC = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)

every_model = pytest.mark.parametrize("name", MODELS.names())


def small(name: str, seed: int = 0) -> nn.Module:
    return build_model(name, num_classes=7, in_channels=2, image_size=(9, 14), seed=seed)


def images(batch: int = 4, channels: int = 2, size: tuple[int, int] = (9, 14)) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


def same_state(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


@every_model
@pytest.mark.parametrize(("channels", "size"), SIZES)
def test_logits_have_one_column_per_class(name: str, channels: int, size: tuple[int, int]) -> None:
    model = build_model(name, num_classes=7, in_channels=channels, image_size=size, seed=0).eval()
    with torch.no_grad():
        logits = model(images(2, channels, size))
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])  # the output depends on the image


@every_model
def test_the_factory_needs_no_argument(name: str) -> None:
    model = MODELS.get(name)().eval()
    with torch.no_grad():
        assert model(images(1, 3, (32, 32))).shape == (1, 10)


@every_model
def test_a_seed_fixes_the_parameters_and_leaves_the_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    first = small(name, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert same_state(first, small(name, seed=3))
    assert not same_state(first, small(name, seed=4))


@every_model
def test_gradients_reach_every_parameter(name: str) -> None:
    model = small(name).train()
    nn.functional.cross_entropy(model(images()), torch.tensor([0, 1, 2, 3])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@every_model
def test_every_parameter_belongs_to_a_layer_that_convert_can_see(name: str) -> None:
    for module_name, module in small(name).named_modules():
        if list(module.parameters(recurse=False)):
            assert type(module) in PARAMETRIC, f"{module_name} is a {type(module).__name__}"


@every_model
def test_there_is_something_between_the_first_and_the_last_layer(name: str) -> None:
    weighted = [module for module in small(name).modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert len(weighted) >= 3


@every_model
def test_each_module_runs_once_per_pass(name: str) -> None:
    model = small(name).eval()
    calls: dict[str, int] = {}
    for module_name, module in model.named_modules():
        if isinstance(module, (nn.ReLU, *PARAMETRIC)):
            calls[module_name] = 0
            module.register_forward_hook(lambda *_, key=module_name: calls.update({key: calls[key] + 1}))
    with torch.no_grad():
        model(images())
    assert any(isinstance(module, nn.ReLU) for module in model.modules())
    assert set(calls.values()) == {1}, calls


@every_model
def test_in_place_activations_change_no_number(name: str) -> None:
    def loss_and_gradients(model: nn.Module) -> list[Tensor]:
        loss = nn.functional.cross_entropy(model(images()), torch.tensor([0, 1, 2, 3]))
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    model = small(name).train()
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    for left, right in zip(loss_and_gradients(model), loss_and_gradients(twin), strict=True):
        assert torch.equal(left, right)


@every_model
def test_the_input_is_not_written_to(name: str) -> None:
    given = images()
    small(name).train()(given)
    assert torch.equal(given, images())


@every_model
@pytest.mark.parametrize("wrong", [0, -1, 2.0, "10", True])
def test_a_size_that_is_not_a_count_is_refused(name: str, wrong: object) -> None:
    for option in ("num_classes", "in_channels"):
        with pytest.raises(LowbitError, match=f"{option} is {wrong!r}; give a whole number"):
            MODELS.get(name)(**{option: wrong})


@every_model
def test_the_first_line_of_the_docstring_describes_the_model(name: str) -> None:
    first = (MODELS.get(name).__doc__ or "").splitlines()[0]
    assert first.endswith((".", ";"))
    assert len(first) > 20
