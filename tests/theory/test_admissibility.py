"""The admissible class, against bounds worked out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators import AbstractEstimator, build_estimator
from lowbit.quantizers import Grid, build_quantizer
from lowbit.theory.admissibility import admissible

FOUR = build_quantizer("staircase", 4)  # q = 15


@pytest.mark.parametrize(
    ("name", "high", "delta"),
    [
        ("relu", 20.0, 1.0),
        ("log-tailed", 20.0, 1 / (20 - 15 + 1)),
        ("log-tailed", 12.0, 1.0),
        ("reverse-exponential", 20.0, math.exp(-20 / 15)),
        ("clipped", 14.5, 1.0),
    ],
)
def test_members_and_their_bounds(name: str, high: float, delta: float) -> None:
    found = admissible(build_estimator(name), FOUR, (-5.0, high))
    assert found.admissible
    assert found.violations == ()
    assert found.delta == pytest.approx(delta, rel=1e-6)
    assert found.delta_bar == pytest.approx(1.0, rel=1e-6)
    assert found.safe_up_to == high


def test_clipped_leaves_the_class_where_the_staircase_saturates() -> None:
    found = admissible(build_estimator("clipped"), FOUR, (-5.0, 20.0))
    assert not found.admissible
    assert [v.condition for v in found.violations] == ["lower bound"]
    assert found.violations[0].where == pytest.approx(15, abs=1e-6)
    assert found.safe_up_to == pytest.approx(15, abs=1e-6)
    assert (found.delta, found.delta_bar) == (0.0, 1.0)


def test_identity_fails_below_zero_and_only_there() -> None:
    found = admissible(build_estimator("identity"), FOUR, (-5.0, 20.0))
    assert [v.condition for v in found.violations] == ["zero"]
    assert -0.01 < found.violations[0].where < 0
    assert (found.delta, found.delta_bar) == (1.0, 1.0)
    assert admissible(build_estimator("identity"), FOUR, (1.0, 20.0)).admissible  # nothing below 0 to look at


def test_an_estimator_that_looks_at_the_gradient_has_to_comply_for_both_signs() -> None:
    found = admissible(build_estimator("ewgs(delta=0.5)"), FOUR, (-5.0, 14.0))
    assert found.admissible
    assert found.delta == pytest.approx(0.5, abs=1e-6)  # z − code is within (−1, 0]
    assert found.delta_bar == pytest.approx(1.5, abs=1e-6)


@dataclass(frozen=True)
class Odd(AbstractEstimator):
    """A toy of which any condition can be broken."""

    kind: str = ""
    linear_in_grad = True
    elementwise = True
    annealed = False
    binary_only = False
    roles = frozenset({"activations"})
    needs = frozenset({"z"})

    @classmethod
    def examples(cls) -> list[AbstractEstimator]:
        return [cls()]

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        slope = {"negative": -torch.ones_like(z), "infinite": 1 / (z - 4).abs(), "gap": (z - 7).abs().clamp(0, 1)}
        return grad * slope[self.kind] * (z > 0)


@pytest.mark.parametrize(
    ("kind", "condition", "where"),
    [("negative", "lower bound", 0.0), ("infinite", "upper bound", 4.0), ("gap", "lower bound", 7.0)],
)
def test_each_condition_is_noticed(kind: str, condition: str, where: float) -> None:
    (violation,) = admissible(Odd(kind), FOUR, (-5.0, 20.0)).violations
    assert violation.condition == condition
    assert violation.where == pytest.approx(where, abs=0.01)
    assert "g'" in violation.text


def test_the_class_is_for_staircases_that_rise_from_zero() -> None:
    found = admissible(build_estimator("clipped"), build_quantizer("lsq", 2))
    assert not found.applies
    assert not found.admissible
    assert found.violations == ()
    assert (found.low, found.high) == (-3.5, 2.5)
    assert (found.delta, found.delta_bar) == (1.0, 1.0)


@pytest.mark.parametrize("range", [(0.0, math.inf), (3.0, 3.0), (5.0, 1.0), (math.nan, 1.0)])
def test_a_range_that_is_none(range: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="is not a bounded range of pre-activations"):
        admissible(build_estimator("relu"), FOUR, range)


def test_a_pair_that_is_not_defined() -> None:
    with pytest.raises(ConfigError, match="'lne' does not act on activations"):
        admissible(build_estimator("lne"), FOUR)
