"""Timing, and what is timed beside an exported file."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowbit import ConfigError
from lowbit.deploy.measure import timing
from lowbit.deploy.measure.bench import bench
from lowbit.deploy.measure.peers import folded, run_onnx, run_torch, write_float, write_int8
from lowbit.deploy.measure.timing import bursts, machine, ratio, torch_threads

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5), nn.BatchNorm1d(5)]
    model = nn.Sequential(*layers)
    model(IMAGES)  # statistics other than 0 and 1
    return model.eval()


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else self.conv(x)


class Twice(nn.Module):
    """The convolution's result is read before its normalisation too: nothing may be folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_everybody_has_a_turn_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    monkeypatch.setattr(timing, "BURST", 0.0)
    called: list[str] = []
    times = bursts({name: lambda name=name: called.append(name) for name in "ab"}, rounds=4, threads=1)
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}
    assert "".join(name for name, _ in itertools.groupby(called)) == "ab" * 5  # the first to see how long a call takes


def test_no_round_begins_after_the_time_but_five_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    monkeypatch.setattr(timing, "BURST", 0.0)
    assert len(bursts({"a": lambda: None}, rounds=50, threads=2, seconds=0.0)["a"]) == 5
    assert len(bursts({"a": lambda: None}, rounds=3, threads=2, seconds=0.0)["a"]) == 3


def test_a_slow_run_is_called_once_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    calls: list[float] = []

    def slow() -> None:
        calls.append(now[0])
        now[0] += 1.0

    monkeypatch.setattr(time, "process_time", lambda: now[0])
    assert bursts({"a": slow}, rounds=2, threads=1)["a"] == [1000.0, 1000.0]
    assert len(calls) == 3 + 2


def test_the_ratio_is_taken_within_rounds() -> None:
    assert ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3.0


def test_threads_are_put_back_after_an_error() -> None:
    before, seen = torch.get_num_threads(), []

    def fail() -> None:
        with torch_threads(before + 1):
            seen.append(torch.get_num_threads())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_the_machine_has_a_name() -> None:
    assert machine()["processor"]


@pytest.mark.parametrize("model", [net(), Branching().eval(), Twice().eval()], ids=lambda m: type(m).__name__)
def test_folding_changes_no_result(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.testing.assert_close(folded(model)(IMAGES), model(IMAGES))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_normalisations_are_folded_where_they_can_be() -> None:
    def norms(model: nn.Module) -> int:
        return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded(model).modules())

    assert (norms(net()), norms(Twice().eval()), norms(Branching().eval())) == (0, 1, 1)


def test_the_peers_compute_the_net(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = net()
    with torch.no_grad():
        expected = model(IMAGES)
    write_float(model, IMAGES, tmp_path / "float.onnx")
    write_int8(tmp_path / "float.onnx", tmp_path / "int8.onnx", [IMAGES, IMAGES.flip(0)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float.onnx", "int8.onnx"]
    torch.testing.assert_close(torch.from_numpy(run_onnx(tmp_path / "float.onnx", IMAGES, 1)()[0]), expected)
    rough = torch.from_numpy(run_onnx(tmp_path / "int8.onnx", IMAGES, 1)()[0])
    assert 0 < (rough - expected).norm() / expected.norm() < 0.1
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(run_torch(model, IMAGES, memory_format)(), expected)


@pytest.mark.parametrize("name", ["threads", "batch", "rounds"])
def test_numbers_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0, expected a whole number from 1"):
        bench("a.lowbit", **{name: 0})
