"""Models of the user's own that do not work: a plain message, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lowbit import ConfigError
from lowbit.data import load_data
from lowbit.training import TrainConfig, train
from lowbit.training.config import resolve
from lowbit.training.task import build_float_model, build_low_bit_model

Make = Callable[..., TrainConfig]

FAULTY = """
import torch
from torch import nn


def three_outputs():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 3))


def wrong_input():
    return nn.Sequential(nn.Flatten(), nn.Linear(63, 10))


class Net(nn.Module):
    def __init__(self, many=False):
        super().__init__()
        self.many = many
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 10)
        )
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        logits = self.body(x + 0 * torch.rand(1))
        return (logits, logits) if self.many else logits


def late():
    class Late(Net):
        def forward(self, x):
            if self.training and len(x) > 2:
                raise KeyError("late")
            return self.body(x)

    return Late()


def constructor():
    raise ZeroDivisionError("of the user's own")
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of the models above, under a name of its own."""
    name = "faulty_nets_of_" + tmp_path.name.replace("-", "_")
    (tmp_path / f"{name}.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize(
    ("model", "changes", "says"),
    [
        ("three_outputs", {}, r"returns an output of shape \(2, 3\) for two images; expected shape \(2, 10\)"),
        ("Net(many=True)", {}, r"returns an output of type tuple for two images"),
        ("wrong_input", {}, "fails: RuntimeError: mat1 and mat2"),
        ("constructor", {}, "cannot be built: ZeroDivisionError: of the user's own"),
        ("late", {"activations": 32, "weights": 32}, "fails: KeyError: 'late'"),
        ("Net", {"batch_size": 1}, "nothing to average over one image; take a larger --batch-size"),
        ("Net", {"batch_size": 2, "devices": 2}, "nothing to average over one image; take a larger --batch-size"),
        ("Net", {"devices": 2}, r"the loss does not reach every parameter.* or train with --devices 1"),
    ],
)
@pytest.mark.usefixtures("capfd")
def test_a_model_that_does_not_work_is_named(
    tiny: Make, faulty: str, model: str, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        train(tiny(model=f"{faulty}:{model}", **{"epochs": 1, **changes}))
    assert f"{faulty}:{model.partition('(')[0]}" in str(error.value)


def test_trying_a_model_leaves_no_trace(tiny: Make, faulty: str) -> None:
    state = torch.get_rng_state()
    model = build_float_model(tiny(model=f"{faulty}:Net", batch_size=64), load_data("digits", None))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm1d))
    assert norm.running_mean is not None
    assert torch.equal(norm.running_mean, torch.zeros(8))


def test_single_images_are_fine_where_there_is_no_batch_normalisation(tiny: Make, nets: Path) -> None:
    config = resolve(tiny(model="nets:without_norm", batch_size=1, keep_float=()))
    _, decided = build_low_bit_model(config, load_data("digits", None))
    assert len(decided.converted) == 2
