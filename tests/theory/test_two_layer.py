from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowbit import ConfigError
from lowbit.estimators import build_estimator
from lowbit.quantizers import build_quantizer
from lowbit.theory import (
    TwoLayerNetwork,
    accuracy,
    angled_subspaces,
    check_second_layer,
    hinge,
    margins,
    second_layer,
)

Array = NDArray[np.float64]


def network(estimator: str = "relu", classes: int = 2, units: int = 6, bits: int = 2) -> TwoLayerNetwork:
    quantizer = build_quantizer("staircase", bits)
    return TwoLayerNetwork(second_layer(classes, units).double(), quantizer, build_estimator(estimator))


def problem(classes: int, units: int, per_class: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """W, x, y in float64."""
    generator = torch.Generator().manual_seed(seed)
    points, labels = angled_subspaces(40.0, classes=classes, dtype=torch.float64).sample(per_class, generator)
    return torch.randn(2 * classes, units, generator=generator, dtype=torch.float64), points, labels


def slope(estimator: str, h: float, q: int) -> float:
    match estimator:
        case "relu":
            return float(h > 0)
        case "clipped":
            return float(0 < h < q)
        case "log-tailed":
            return 0.0 if h <= 0 else 1.0 if h <= q else 1 / (h - q + 1)
        case "reverse-exponential":
            return math.exp(-h / q) if h > 0 else 0.0
    return 1.0


def stair(h: float, q: int) -> int:
    return 0 if h <= 0 else q if h >= q else math.ceil(h)


def twin(w: Array, x: Array, y: list[int], v: Array, estimator: str, q: int) -> tuple[float, float, Array]:
    """Loss, accuracy and coarse gradient of one point after the other, entry by entry."""
    loss, right, gradient = 0.0, 0, np.zeros_like(w)
    for point, true in zip(x, y, strict=True):
        h = [sum(w[a, j] * point[a] for a in range(len(point))) for j in range(w.shape[1])]
        o = [sum(v[i, j] * stair(h[j], q) for j in range(len(h))) for i in range(len(v))]
        rival = max((i for i in range(len(o)) if i != true), key=lambda i: (o[i], -i))
        one = max(0.0, 1 - o[true] + o[rival])
        loss += one / len(x)
        right += max(range(len(o)), key=lambda i: (o[i], -i)) == true
        if one > 0:
            for j in range(len(h)):
                gradient[:, j] -= (v[true, j] - v[rival, j]) * slope(estimator, h[j], q) * point / len(x)
    return loss, right / len(x), gradient


@pytest.mark.parametrize("estimator", ["relu", "clipped", "log-tailed", "reverse-exponential", "identity"])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_coarse_gradient_is_that_of_the_loops(estimator: str, classes: int) -> None:
    weights, points, labels = problem(classes, 7, 20)
    net = network(estimator, classes, 7)
    loss, right, gradient = twin(
        weights.numpy(), points.numpy(), labels.tolist(), net.second.numpy(), estimator, net.quantizer.grid.high
    )
    found = net.evaluate(weights, points, labels)
    assert float(found[0]) == pytest.approx(loss)
    assert float(found[1]) == pytest.approx(right)
    assert float(found[3]) == pytest.approx(float((points @ weights).max()))
    torch.testing.assert_close(found[2].numpy(), gradient)
    torch.testing.assert_close(net.coarse_gradient(weights, points, labels).numpy(), gradient)
    assert np.abs(gradient).max() > 0.05


def test_runs_are_computed_side_by_side() -> None:
    net = network(classes=3)
    parts = [problem(3, 6, 11, seed) for seed in range(4)]
    weights, points, labels = (torch.stack(values) for values in zip(*parts, strict=True))
    together = net.evaluate(weights, points, labels)
    for i, part in enumerate(parts):
        for value, single in zip(together, net.evaluate(*part), strict=True):
            torch.testing.assert_close(value[i], single)
    torch.testing.assert_close(net.evaluate(weights, points, labels[0]), together)  # one row of labels for all


def test_an_estimator_sees_the_gradient_of_the_mean() -> None:
    """One that is not linear in it, EWGS: `g·(1 + δ·sign(g)·(h − σ(h)))`."""
    net = network("ewgs(delta=0.3)")
    weights, points, labels = problem(2, 6, 30)
    h = points @ weights
    codes = net.activations(h)
    active = (hinge(codes @ net.second.mT, labels) > 0).double()
    sign = 1 - 2 * labels.double()  # with two classes, v_y − v_ξ is the difference of the rows, or its negative
    g = -(active * sign)[:, None] * (net.second[0] - net.second[1]) / len(points)
    inside = net.estimator.vjp(h, codes, torch.ones_like(h), net.quantizer.grid) != 0
    expected = points.mT @ (g * (1 + 0.3 * g.sign() * (h - codes)) * inside)
    torch.testing.assert_close(net.coarse_gradient(weights, points, labels), expected)


def test_codes_count_from_the_lowest() -> None:
    net = TwoLayerNetwork(second_layer(2, 4), build_quantizer("sign", 1), build_estimator("identity"))
    assert net.activations(torch.tensor([-3.0, 2.0])).tolist() == [0, 2]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_population_gradient_is_the_slope_of_the_loss_of_ten_times_the_points(classes: int) -> None:
    """Against plain differences of the mean loss, on other points and with another step."""
    net = network(classes=classes, units=4 if classes == 2 else 3, bits=3)
    spaces = angled_subspaces(40.0, classes=classes, dtype=torch.float64)
    weights = problem(classes, net.second.shape[1], 1)[0]
    points, labels = spaces.sample(2**14 // classes, torch.Generator().manual_seed(1))
    found = net.population_gradient(weights, points, labels)
    other, their_labels = spaces.sample(10 * 2**14 // classes, torch.Generator().manual_seed(2))
    expected, step = torch.zeros_like(weights), 0.03
    for a in range(weights.shape[0]):
        for j in range(weights.shape[1]):
            shift = torch.zeros_like(weights)
            shift[a, j] = step
            above, below = (hinge(net.outputs(weights + s * shift, other), their_labels).mean() for s in (1, -1))
            expected[a, j] = (above - below) / (2 * step)
    assert float((found - expected).norm() / expected.norm()) < 0.1
    assert float(expected.norm()) > 0.3


def test_the_population_gradient_recomputes_only_what_changes() -> None:
    """The same points and the same step: equal to plain differences but for rounding."""
    net = network(classes=3)
    weights, points, labels = problem(3, 6, 200)
    found = net.population_gradient(weights, points, labels, step=0.02)
    for a, j in [(0, 0), (3, 2), (5, 5), (1, 4)]:
        shift = torch.zeros_like(weights)
        shift[a, j] = 0.02
        above, below = (hinge(net.outputs(weights + s * shift, points), labels).mean() for s in (1, -1))
        assert float(found[a, j]) == pytest.approx(float(above - below) / 0.04, abs=1e-9)
    with pytest.raises(ConfigError, match="the step of the finite differences is 0, expected a number above 0"):
        net.population_gradient(weights, points, labels, step=0)


def test_margins_loss_and_accuracy() -> None:
    outputs = torch.tensor([[3.0, 1, 2], [0, 0, 0], [1, 5, 5], [0, 4, 2.5]])
    labels = torch.tensor([0, 1, 2, 1])
    margin, rival = margins(outputs, labels)
    assert margin.tolist() == [1, 0, 0, 1.5]
    assert rival.tolist() == [2, 0, 1, 2]
    assert hinge(outputs, labels).tolist() == [0, 1, 1, 0]
    assert float(accuracy(outputs, labels)) == 0.5  # of equal outputs the first is predicted


def test_the_second_layer_shares_the_units() -> None:
    assert second_layer(2, 24).sum(1).tolist() == [6, 6]
    assert second_layer(3, 8).gt(0).sum(1).tolist() == [3, 3, 2]
    assert second_layer(3, 8).gt(0).sum(0).tolist() == [1] * 8
    for classes, units in [(2, 2), (2, 24), (3, 8), (10, 10)]:
        check_second_layer(second_layer(classes, units))
    with pytest.raises(ConfigError, match="units is 2 for 3 classes, expected at least 3"):
        second_layer(3, 2)
    with pytest.raises(ConfigError, match="1 class was asked for"):
        second_layer(1, 2)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[0.5, 0, 0], [0, 1.5, 0]], "weight of class 1, unit 1 is 1.5: expected no weight above 1"),
        ([[0.5, 0, -0.1], [0, 1, 0]], "weight of class 0, unit 2 is -0.1: expected no weight below 0"),
        ([[0.5, math.nan], [0, 1]], "weight of class 0, unit 1 is nan"),
        ([[0.5, 0.2, 0], [0, 0.2, 1]], "unit 1 of the second layer counts for classes 0 and 1"),
        ([[0.5, 0.5, 0], [0, 0, 0]], "class 1 has no unit in the second layer"),
        ([[0.5], [0.5]], "2 classes and 1 units, expected at least 2 classes and as many units"),
        ([0.5, 0.5], "1 dimensions, expected a matrix"),
    ],
)
def test_a_second_layer_outside_the_theory_is_refused(rows: list[list[float]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_second_layer(torch.tensor(rows))
    with pytest.raises(ConfigError, match=says):
        TwoLayerNetwork(torch.tensor(rows), build_quantizer("staircase", 2), build_estimator("relu"))


def test_an_estimator_for_other_quantizers_is_refused() -> None:
    with pytest.raises(ConfigError, match="'approxsign' is defined for the sign quantizer only"):
        network("approxsign")
    with pytest.raises(ConfigError, match="'relu' is defined for staircases that rise from 0"):
        TwoLayerNetwork(second_layer(2, 4), build_quantizer("sign", 1), build_estimator("relu"))
