from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowbit
from lowbit import ConfigError, UnknownNameError
from lowbit.diagnostics.repulsion import Descent, RepulsionReport, repulsion, with_activation_estimator
from lowbit.diagnostics.repulsion_plots import plot_repulsion
from lowbit.estimators import build_estimator
from lowbit.estimators.clipped import Clipped
from lowbit.estimators.identity import Identity
from lowbit.estimators.relu import ReLU
from lowbit.layers import FakeQuantize, QuantReLU, quantizers_of


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _model(**options: Any) -> nn.Module:
    """Two hidden layers, 2-bit activations in the place of the ReLUs, 2-bit weights in the middle."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()]
    given = {"weights": 2, "activations": 2, "activation_quantizer": "staircase", **options}
    return lowbit.convert(nn.Sequential(*layers, nn.Linear(16, 3)), **given)


def _batches(count: int = 10, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    return [
        (torch.randn(size, 6, generator=_generator(i)), torch.randint(3, (size,), generator=_generator(100 + i)))
        for i in range(count)
    ]


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_activation_estimators_are_exchanged_and_weights_keep_theirs() -> None:
    model = _model()
    before = _state(model)
    swapped = with_activation_estimator(model, "relu")
    for quantize, old in zip(quantizers_of(swapped), quantizers_of(model), strict=True):
        assert quantize.quantizer is not old.quantizer
        assert type(old.rule) is Clipped
        assert type(quantize.rule) is type(quantize.estimator) is (Clipped if quantize.quantizer.signed else ReLU)
    assert sum(isinstance(module, QuantReLU) for module in swapped.modules()) == 2
    assert _same(_state(swapped), before)
    inputs = _batches(1)[0][0]
    assert torch.equal(swapped.eval()(inputs), model.eval()(inputs))
    at_inputs = with_activation_estimator(_model(activation_quantizer="unsigned"), Identity())
    rules = [type(quantize.rule) for quantize in quantizers_of(at_inputs) if not quantize.quantizer.signed]
    assert rules == [Identity]


def test_the_exchanged_estimator_makes_the_gradient() -> None:
    """Below 0 the identity passes a gradient where clipped passes none."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    nn.init.ones_(model[0].weight)  # type: ignore[arg-type]
    low_bit = lowbit.convert(model, weights=32, activations=2, activation_quantizer="staircase", keep_float=())
    for name, passes in (("clipped", False), ("identity", True), ("relu", False)):
        copied = with_activation_estimator(low_bit, name)
        copied(torch.tensor([[-0.5]])).sum().backward()
        assert (float(copied[0].weight.grad) != 0) is passes, name  # type: ignore[index, union-attr, arg-type]


def test_an_estimator_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="estimator 'reste' is defined for the sign quantizer only, the activations"):
        with_activation_estimator(_model(), "reste")
    with pytest.raises(ConfigError, match="estimator 'relu' is defined for staircases that rise from 0"):
        with_activation_estimator(_model(activation_quantizer="lsq"), "relu")
    with pytest.raises(UnknownNameError, match="did you mean 'identity'"):
        repulsion(_model(), _batches(), _batches(1), F.cross_entropy, ["identiy"])


def _plain_loop(model: nn.Module, descent: Descent, evaluation: list[tuple[Tensor, Tensor]]) -> tuple[Any, Any]:
    """The slow twin: SGD with momentum, written out, and the losses at every look."""
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    losses, batch_losses, since = [], [], []
    for step, (inputs, labels) in enumerate([(None, None), *_batches()][: descent.steps + 1]):
        if step:
            model.train().zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            since.append(float(loss.detach()))
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if p.grad is not None:
                        velocity[name] = descent.momentum * velocity[name] + p.grad
                        p -= descent.lr * velocity[name]
        if step % (descent.every or 1) == 0 or step == descent.steps:
            with torch.no_grad():
                found = [(float(F.cross_entropy(model.eval()(x), y)), len(y)) for x, y in evaluation]
            losses.append(sum(value * count for value, count in found) / sum(count for _, count in found))
            batch_losses += [sum(since) / len(since)] if since else []
            since = []
    return losses, batch_losses


def test_each_copy_walks_as_a_plain_loop_would_over_the_same_batches() -> None:
    model, evaluation = _model(), [*_batches(1), *_batches(2, size=3)[1:]]
    descent = Descent(steps=7, lr=0.1, momentum=0.5, every=3)
    before, draws = _state(model), torch.get_rng_state()
    report = repulsion(model, _batches(), evaluation, F.cross_entropy, ["relu", "identity"], descent)
    assert _same(_state(model), before)
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(p.grad is None for p in model.parameters())
    assert [(walk.estimator, walk.own) for walk in report.walks] == [
        ("clipped", True),
        ("relu", False),
        ("identity", False),
    ]
    for walk in report.walks:
        losses, batch_losses = _plain_loop(with_activation_estimator(model, walk.estimator), descent, evaluation)
        assert walk.steps == [0, 3, 6, 7]
        assert walk.losses == pytest.approx(losses, rel=1e-5)
        assert walk.batch_losses == pytest.approx(batch_losses, rel=1e-5)
        assert walk.settled == pytest.approx((batch_losses[1] + batch_losses[2]) / 2, rel=1e-5)  # of steps 4 to 7
        assert walk.initial == report.walks[0].initial
        assert (walk.final, walk.highest) == (walk.losses[-1], max(walk.losses))
        assert walk.ratio == pytest.approx(walk.final / walk.initial)
        assert walk.diverged is None
    assert len({walk.final for walk in report.walks}) == 3
    assert (report.batch_size, report.images, report.steps) == (8, 11, 7)
    assert report.places == ["2.input_quantizer", "5.input_quantizer"]


class _Once:
    """Batches that can be gone through only once, and are counted."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in itertools.cycle(_batches()):
            self.taken += 1
            yield batch


def test_batches_are_taken_once_and_dropout_draws_the_same_for_all() -> None:
    model = _model()
    model.insert(6, nn.Dropout(0.5))  # type: ignore[operator]
    descent = Descent(steps=12, lr=0.05, seed=3)
    batches = _Once()
    twice = [Clipped(), build_estimator("clipped"), "clipped"]
    one = repulsion(model, batches, _batches(1), F.cross_entropy, twice, descent)
    assert batches.taken <= 13
    assert [walk.estimator for walk in one.walks] == ["clipped"]  # the control is not run twice
    two = repulsion(with_activation_estimator(model, "relu"), _Once(), _batches(1), F.cross_entropy, twice, descent)
    assert [(walk.estimator, walk.own) for walk in two.walks] == [("relu", True), ("clipped", False)]
    assert two.walks[1].losses == one.walks[0].losses
    other = repulsion(model, _Once(), _batches(1), F.cross_entropy, [], replace(descent, seed=4))
    assert other.walks[0].losses != one.walks[0].losses


def test_the_coarse_gradients_at_the_start_are_compared() -> None:
    model, evaluation = _model(), [*_batches(1), *_batches(2, size=24)[1:]]
    report = repulsion(model, _batches(), evaluation, F.cross_entropy, ["identity", "relu"], Descent(steps=1))
    slopes = []
    for walk in report.walks:
        copied = with_activation_estimator(model, walk.estimator).train()
        (sum(F.cross_entropy(copied(x), y, reduction="sum") for x, y in evaluation) / 32).backward()
        slopes.append(
            torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in copied.parameters()])
        )
        assert walk.gradient_norm == pytest.approx(float(slopes[-1].norm()), rel=1e-5)
        assert walk.cosine == pytest.approx(float(F.cosine_similarity(slopes[0], slopes[-1], dim=0)), rel=1e-5)
    assert report.walks[0].cosine == pytest.approx(1)
    assert 0 < (report.walks[1].cosine or 0) < 0.99


def test_where_the_loss_is_exactly_zero_nothing_moves() -> None:
    model = _model()

    def hinge(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.abs() - 1e6).clamp_min(0).mean()

    report = repulsion(model, _batches(), _batches(1), hinge, ["identity"], Descent(steps=5, lr=1.0))
    assert [walk.losses for walk in report.walks] == [[0.0] * 6] * 2
    assert [walk.ratio for walk in report.walks] == [None] * 2
    assert [(walk.gradient_norm, walk.cosine) for walk in report.walks] == [(0, None)] * 2
    assert [line.split()[4:8] for line in report.render().splitlines()[-2:]] == [
        ["0", "-", "0", "0"],
        ["-", "0", "0", "-"],
    ]


def test_a_walk_that_diverges_ends_and_the_others_go_on() -> None:
    model, calls = _model(), 0

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        breaks = torch.is_grad_enabled() and calls == 8  # the second copy, in its third step
        return F.cross_entropy(outputs, labels) * (math.inf if breaks else 1)

    report = repulsion(model, _batches(), _batches(1), loss, ["identity"], Descent(steps=8, lr=0.01, every=2))
    own, other = report.walks
    assert (own.diverged, own.steps) == (None, [0, 2, 4, 6, 8])
    assert (other.diverged, other.steps, len(other.batch_losses)) == (4, [0, 2], 1)
    assert (own.settled, other.settled) == (pytest.approx(sum(own.batch_losses[2:]) / 2), None)
    json.dumps(asdict(report), allow_nan=False)
    assert "diverged at step 4" in report.render()


def test_annealed_estimators_stand_where_training_left_them() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    model = lowbit.convert(layers, weights=1, activations=1, activation_quantizer="sign", estimator="approxsign")
    finals = []
    for progress in (0.0, 1.0):
        descent = Descent(steps=5, lr=0.5)
        report = repulsion(model, _batches(), _batches(1), F.cross_entropy, ["reste"], descent, progress)
        finals.append([walk.final for walk in report.walks])
    assert finals[0][0] == finals[1][0]  # clipped does not anneal
    assert finals[0][1] != finals[1][1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"every": 0}, "every is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": math.inf}, "lr is inf"),
        ({"momentum": 1.0}, "momentum is 1.0"),
    ],
)
def test_a_descent_that_goes_nowhere_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Descent(**options)


def test_mistakes_are_said_in_words() -> None:
    with pytest.raises(ConfigError, match="not finite before the first step"):
        repulsion(_model(), _batches(), _batches(1), lambda outputs, _: outputs.mean() * math.nan)
    with pytest.raises(ConfigError, match="no low-bit activations"):
        repulsion(_model(activations=32, activation_quantizer=None), _batches(), _batches(1), F.cross_entropy)
    with pytest.raises(ConfigError, match="10 batches for 11 steps"):
        repulsion(_model(), _batches(), _batches(1), F.cross_entropy, [], Descent(steps=11))
    with pytest.raises(ConfigError, match="at least one evaluation batch"):
        repulsion(_model(), _batches(), [], F.cross_entropy)


def test_looks_are_spread_over_the_steps() -> None:
    assert Descent(steps=200).looks == list(range(0, 201, 10))
    assert Descent(steps=7).looks == list(range(8))
    assert Descent(steps=10, every=4).looks == [0, 4, 8, 10]


def test_report_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    descent = Descent(steps=6, lr=0.1, every=2)
    report = repulsion(_model(), _batches(), _batches(1), F.cross_entropy, ["identity"], descent)
    assert isinstance(report, RepulsionReport)
    lines = report.render().splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["clipped", "identity"]
    assert f"{report.walks[1].ratio:.3g}" in lines[-1].split()
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    plot_repulsion(tmp_path / "r.png", report, "run")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    seen, evaluated = drawn[0].axes
    assert [list(line.get_ydata()) for line in evaluated.get_lines()] == [walk.losses for walk in report.walks]
    assert [list(line.get_xdata()) for line in seen.get_lines()] == [[2, 4, 6]] * 2
    assert evaluated.get_yscale() == seen.get_yscale() == "log"


def test_the_model_that_is_given_may_be_in_any_mode() -> None:
    model = _model()
    descent = Descent(steps=3, lr=0.1)
    runs = [
        repulsion(copy.deepcopy(model).train(m), _batches(), _batches(1), F.cross_entropy, [], descent)
        for m in (True, False)
    ]
    assert runs[0].walks[0].losses == runs[1].walks[0].losses
    assert isinstance(next(quantizers_of(model)), FakeQuantize)
