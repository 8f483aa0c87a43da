from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lowbit import DivergedError
from lowbit.diagnostics import LayerFigures
from lowbit.methods import StepRecord
from lowbit.training.metrics import WINDOW, EpochMeter, LossGuard, Window, best_record, check_finite, with_layers


def _record(loss: float, correct: int, **metrics: float) -> StepRecord:
    values = {name: torch.tensor(value) for name, value in metrics.items()}
    return StepRecord(torch.tensor(loss), torch.tensor(correct), values)


def test_means_over_an_epoch_come_out_whenever_they_are_fetched() -> None:
    meter = EpochMeter(lambda table: table, world_size=1)
    meter.add(_record(2.0, 3, flips=0.5), images=4)
    meter.add(_record(1.0, 4, flips=0.0), images=4)
    assert (meter.pending, meter.seen, meter.images) == (2, 8, 0)
    assert meter.flush().losses == [2.0, 1.0]
    meter.add(_record(0.0, 1, flips=1.0), images=2)
    assert meter.flush() == Window([0.0], {"flips": 1.0}, {})
    assert meter.flush() == Window([], {}, {})
    assert (meter.loss, meter.accuracy, meter.metrics) == (1.0, 0.8, {"flips": 0.5})


def test_two_ranks_average_losses_and_add_up_correct_images() -> None:
    other = torch.tensor([3.0, 2.0])  # loss and correct images of the other rank
    meter = EpochMeter(lambda own: own + other, world_size=2)
    meter.add(_record(1.0, 4), images=4)
    assert meter.flush().losses == [2.0]
    assert (meter.images, meter.accuracy) == (8, 0.75)


def test_without_counts_of_correct_images_there_is_no_accuracy() -> None:
    meter = EpochMeter(lambda own: own, world_size=1)
    meter.add(_record(1.0, 2), images=4)
    meter.add(StepRecord(torch.tensor(3.0), None), images=4)
    assert meter.flush().losses == [1.0, 3.0]
    assert meter.accuracy is None
    meter.add(_record(1.0, 2), images=4)
    meter.flush()
    assert (meter.accuracy, meter.loss) == (None, 5 / 3)


def test_layers_are_averaged_over_the_steps_at_which_they_were_looked_at() -> None:
    meter = EpochMeter(lambda own: own, world_size=1)
    figures = {"ricci_n": torch.tensor([1.0, 3.0])}
    meter.add(StepRecord(torch.tensor(1.0), None, {}, ("a", "b"), figures), images=1)
    meter.add_figures(LayerFigures(("b", "c"), {"flip_rate": torch.tensor([0.5, 0.25])}))
    meter.add(StepRecord(torch.tensor(1.0), None, {}, ("a", "b"), {"ricci_n": torch.tensor([3.0, 7.0])}), images=1)
    first = meter.flush().layers
    assert first == {"a": {"ricci_n": 2.0}, "b": {"ricci_n": 5.0, "flip_rate": 0.5}, "c": {"flip_rate": 0.25}}
    meter.add_figures(LayerFigures(("b", "c"), {"flip_rate": torch.tensor([0.0, math.nan])}))
    second = meter.flush()
    assert second.losses == []
    assert second.layers["b"] == {"flip_rate": 0.0}
    assert math.isnan(second.layers["c"]["flip_rate"])
    assert meter.layers == {"a": {"ricci_n": 2.0}, "b": {"ricci_n": 5.0, "flip_rate": 0.25}, "c": {"flip_rate": 0.25}}


def test_a_record_holds_layers_and_their_means_as_json_can_say_them() -> None:
    layers = {"a": {"x": 1 / 3, "y": math.nan, "z": math.inf}, "b": {"x": 1.0, "y": 2.0}}
    record = with_layers({"loss": 1.0, "x": 7.0}, {"n": 2.0, "m": math.nan, "loss": 3.0}, layers)
    assert record == {
        "loss": 1.0, "x": 7.0, "y": 2.0, "z": None, "n": 2.0, "m": None,
        "layers": {"a": {"x": 0.333333, "y": None, "z": None}, "b": {"x": 1.0, "y": 2.0}},
    }  # fmt: skip
    assert with_layers({"loss": 1.0}, {}, {}) == {"loss": 1.0}


@pytest.mark.parametrize(("loss", "word"), [(math.nan, "NaN"), (math.inf, "infinite")])
def test_the_guard_names_the_first_bad_step(loss: float, word: str) -> None:
    guard = LossGuard(num_classes=10)
    guard.check([2.0] * 20, last_step=20)
    with pytest.raises(DivergedError, match=f"became {word} at step 23"):
        guard.check([2.0, 2.0, loss, math.nan], last_step=24)


def test_the_guard_stops_a_loss_that_runs_away_at_the_step_its_rule_says() -> None:
    guard = LossGuard(num_classes=10)  # bound: 10 · max(first losses' mean 1, ln 10) = 23.03
    guard.check([1.0] * 100, last_step=100)
    runaway = [50.0] * WINDOW  # 22 + 1·(50 − 22)/… crosses the bound at the 23rd: (23·50 + 27·1)/50 = 23.54
    with pytest.raises(DivergedError, match=r"up to step 123 is 23\.5, more than 23"):
        guard.check(runaway, last_step=100 + WINDOW)


def test_the_guard_lets_a_rough_start_and_a_high_start_pass() -> None:
    guard = LossGuard(num_classes=10)
    guard.check([300.0] * 10 + [900.0] * 30 + [100.0] * 60, last_step=100)
    spiky = LossGuard(num_classes=10)
    spiky.check(([0.1] * 49 + [500.0]) * 4, last_step=200)


def test_the_guard_judges_the_same_after_a_restart() -> None:
    losses = [1.0] * 60 + [50.0] * 30
    whole = LossGuard(10)
    with pytest.raises(DivergedError) as expected:
        whole.check(losses, last_step=90)
    first, second = LossGuard(10), LossGuard(10)
    first.check(losses[:70], last_step=70)
    second.load_state_dict(first.state_dict())
    with pytest.raises(DivergedError) as got:
        second.check(losses[70:], last_step=90)
    assert str(got.value) == str(expected.value)


def test_parameters_and_buffers_that_are_not_finite_are_noticed() -> None:
    model = nn.BatchNorm1d(2)
    check_finite(model, step=5)
    model.running_mean[1] = math.inf  # type: ignore[index]
    with pytest.raises(DivergedError, match="by step 5"):
        check_finite(model, step=5)


def test_best_is_by_validation_accuracy_and_by_test_accuracy_without() -> None:
    rows = [(0.5, 0.9), (0.8, 0.7), (0.8, 0.95)]
    held_out = [{"val_accuracy": val, "test_accuracy": test} for val, test in rows]
    assert best_record(held_out) is held_out[1]
    without = [{"val_accuracy": None, "test_accuracy": test} for _, test in rows]
    assert best_record(without) is without[2]
