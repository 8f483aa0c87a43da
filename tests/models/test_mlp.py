from __future__ import annotations

import pytest
from torch import nn

from lowbit._errors import LowbitError
from lowbit.models import build_model
from lowbit.models.mlp import mlp


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_count_of_the_default() -> None:
    assert parameter_count(mlp(10, 1, (28, 28))) == 784 * 512 + 512 * 512 + 512 * 10 + 10 + 2 * (512 + 512)


@pytest.mark.parametrize("hidden", [(5,), (5, 6), (5, 6, 7)])
def test_hidden_widths_are_an_option(hidden: tuple[int, ...]) -> None:
    widths = (2 * 4 * 4, *hidden)
    expected = sum(a * b for a, b in zip(widths, hidden, strict=False)) + 2 * sum(hidden) + hidden[-1] * 10 + 10
    assert parameter_count(build_model(f"mlp(hidden={hidden})", 10, 2, (4, 4), seed=0)) == expected


def test_each_hidden_layer_is_linear_norm_relu() -> None:
    kinds = [type(module).__name__ for module in mlp(hidden=(3, 4)).children()]
    assert kinds == ["Flatten", *["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]


@pytest.mark.parametrize("hidden", [(), 256, (0,), ("a",), (True,)])
def test_wrong_widths_are_refused(hidden: object) -> None:
    with pytest.raises(LowbitError, match=r"mlp: hidden is .*give one or more whole numbers"):
        mlp(hidden=hidden)  # type: ignore[arg-type]
