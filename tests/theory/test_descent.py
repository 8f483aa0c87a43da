from __future__ import annotations

import math

import pytest
import torch

from lowbit import ConfigError
from lowbit.estimators import build_estimator
from lowbit.quantizers import build_quantizer
from lowbit.theory import DescentOptions, Run, TwoLayerNetwork, angled_subspaces, descend, draw, second_layer
from lowbit.theory.descent import BLOCK

ADMISSIBLE = ("relu", "clipped", "log-tailed", "reverse-exponential")
FAST = DescentOptions(checkpoints=(), evaluation=1024)


def network(estimator: str, classes: int = 2, bits: int = 4) -> TwoLayerNetwork:
    return TwoLayerNetwork(second_layer(classes, 24), build_quantizer("staircase", bits), build_estimator(estimator))


def loss_elsewhere(net: TwoLayerNetwork, run: Run, theta: float, classes: int = 2) -> float:
    """The loss on points that the run has not seen."""
    assert run.weights is not None
    points, labels = angled_subspaces(theta, classes=classes).sample(20_000, torch.Generator().manual_seed(99))
    return float(net.evaluate(run.weights, points, labels)[0])


@pytest.mark.parametrize("estimator", ADMISSIBLE)
def test_admissible_estimators_reach_zero_loss(estimator: str) -> None:
    net = network(estimator)
    runs = descend(net, [angled_subspaces(theta) for theta in (60.0, 90.0)], range(3), FAST)
    assert [(run.family, run.seed) for run in runs] == [(f, s) for f in (0, 1) for s in range(3)]
    for run in runs:
        assert run.iterations_to_zero == run.iterations[-1]
        assert (run.loss[-1], run.accuracy[-1], run.coarse_gradient_norm[-1]) == (0, 1, 0)
        assert min(run.loss[:-1]) > 0 < min(run.coarse_gradient_norm[:-1])
        assert loss_elsewhere(net, run, (60.0, 90.0)[run.family]) < 5e-3 < run.loss[0] / 100


def test_the_identity_stays_at_chance() -> None:
    net = network("identity")
    options = DescentOptions(checkpoints=(), evaluation=1024, iterations=800)
    runs = descend(net, [angled_subspaces(theta) for theta in (60.0, 90.0)], range(4), options)
    assert all(run.iterations_to_zero is None and run.iterations[-1] == 800 for run in runs)
    assert all(run.loss[-1] > 0.3 and run.coarse_gradient_norm[-1] > 0.2 for run in runs)
    assert 0.3 < sum(run.accuracy[-1] for run in runs) / len(runs) < 0.7


def test_three_classes() -> None:
    net = network("relu", classes=3)
    (run,) = descend(net, [angled_subspaces([60.0, 90.0])], [0], FAST)
    assert run.iterations_to_zero is not None
    assert (run.loss[-1], run.accuracy[-1]) == (0, 1)


def test_a_smaller_angle_takes_longer() -> None:
    narrow, wide = descend(network("relu"), [angled_subspaces(theta) for theta in (15.0, 60.0)], [1], FAST)
    assert narrow.iterations_to_zero is not None
    assert wide.iterations_to_zero is not None
    assert narrow.iterations_to_zero > 3 * wide.iterations_to_zero


def test_a_run_is_the_same_in_any_company() -> None:
    options = DescentOptions(checkpoints=(), evaluation=64, iterations=60)
    families = [angled_subspaces(theta) for theta in (30.0, 60.0)]
    together = descend(network("relu"), families, [4, 7], options)
    (alone,) = descend(network("relu"), [families[1]], [7], options)
    same = together[3]
    assert (same.family, same.seed) == (1, 7)
    assert same.iterations[:10] == alone.iterations[:10] == list(range(10))
    assert same.loss[:10] == pytest.approx(alone.loss[:10])
    assert same.coarse_gradient_norm[:10] == pytest.approx(alone.coarse_gradient_norm[:10])


def test_looking_does_not_change_the_run() -> None:
    short = {"evaluation": 1024, "iterations": 20}
    spaces = [angled_subspaces(60.0)]
    (blind,) = descend(network("relu"), spaces, [0], DescentOptions(checkpoints=(), **short))  # type: ignore[arg-type]
    (seeing,) = descend(network("relu"), spaces, [0], DescentOptions(checkpoints=(0, 1, 10), **short))  # type: ignore[arg-type]
    assert (seeing.iterations, seeing.loss, blind.cosines) == (blind.iterations, blind.loss, [])
    assert [iteration for iteration, _ in seeing.cosines] == [0, 1, 10]
    assert all(0.2 < cosine <= 1 for _, cosine in seeing.cosines)
    assert seeing.cosines[0][1] > 0.9


def test_the_step_is_that_of_the_coarse_gradient() -> None:
    """After one step, from the weights of none and the batch that comes next from the seed's generator."""
    net, spaces = network("relu"), angled_subspaces(60.0)
    options = {"checkpoints": (), "evaluation": 8, "batch": 5, "eta": 0.7, "initial": 0.5}
    (run,) = descend(net, [spaces], [3], DescentOptions(iterations=1, **options))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    draw((2, 2), 8, generator, shape=(1,))
    first = 0.5 * torch.randn(4, 24, generator=generator)
    points, labels = spaces.embed(draw((2, 2), 5, generator, shape=(BLOCK,))[0]), spaces.labels(5)
    assert run.weights is not None
    torch.testing.assert_close(run.weights, first - 0.7 * net.coarse_gradient(first, points, labels))


def test_a_run_that_diverges_is_reported() -> None:
    options = DescentOptions(checkpoints=(), evaluation=64, iterations=50, eta=3e38, radius=(5.0, 9.0))
    (run,) = descend(network("relu"), [angled_subspaces(60.0)], [0], options)
    assert (run.diverged, run.iterations_to_zero) == (True, None)
    assert all(math.isfinite(loss) for loss in run.loss)
    assert run.iterations[-1] < 50


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"eta": 0.0}, "eta is 0.0, expected a number above 0"),
        ({"eta": math.nan}, "eta is nan"),
        ({"initial": -1.0}, "initial is -1.0"),
        ({"iterations": 0}, "iterations is 0, expected at least 1"),
        ({"batch": 0}, "batch is 0, expected at least 1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        DescentOptions(**options)  # type: ignore[arg-type]


def test_runs_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="the data have 3 classes, but the network 2"):
        descend(network("relu"), [angled_subspaces(classes=3)], [0])
    with pytest.raises(ConfigError, match="no runs were asked for"):
        descend(network("relu"), [angled_subspaces()], [])
