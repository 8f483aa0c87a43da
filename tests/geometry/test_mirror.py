"""Mirror descent: maps, projections against brute force, and the O(1/√t) rate (Thm 12)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.geometry import (
    AbstractMirror,
    EntropicMirror,
    EuclideanSimplexMirror,
    LNEMirror,
    TanhMirror,
    convex_function,
    lne_divergence,
    mirror_descent,
    project_simplex,
)
from straddling import noise
from tolerances import assert_close

seeds = st.integers(0, 1000)


def points(*shape: int, seed: int = 0) -> Tensor:
    return noise(*shape, seed=seed, dtype=torch.float64)


def nearest_by_supports(x: Tensor) -> Tensor:
    """The projection by trying every set of positive entries: on each, x less the mean excess."""
    best, distance = x, math.inf
    for size in range(1, len(x) + 1):
        for chosen in itertools.combinations(range(len(x)), size):
            index = torch.tensor(chosen)
            candidate = torch.zeros_like(x)
            candidate[index] = x[index] - (x[index].sum() - 1) / size
            if candidate.min() >= 0 and float((candidate - x).norm()) < distance:
                best, distance = candidate, float((candidate - x).norm())
    return best


@given(n=st.integers(1, 6), seed=seeds, size=st.sampled_from([1e-3, 1.0, 30.0]))
def test_projection_on_the_simplex_is_the_nearest_point(n: int, seed: int, size: float) -> None:
    x = size * points(n, seed=seed)
    assert_close(project_simplex(x), nearest_by_supports(x), "dense")


@given(n=st.integers(1, 200), batch=st.lists(st.integers(1, 3), max_size=2), seed=seeds)
def test_projections_lie_on_the_simplex_and_stay(n: int, batch: list[int], seed: int) -> None:
    x = project_simplex(points(*batch, n, seed=seed))
    assert x.min() >= 0
    assert_close(x.sum(-1), torch.ones(batch, dtype=torch.float64), "dense")
    assert_close(project_simplex(x), x, "dense")


def test_projection_of_equal_entries() -> None:
    assert_close(project_simplex(torch.full((4,), 7.0)), torch.full((4,), 0.25), "formula")


SIMPLEX = torch.softmax(points(6), -1)
CUBE = torch.tanh(points(6))
MIRRORS: list[tuple[AbstractMirror, Tensor]] = [
    (LNEMirror(0.8, 2.0), CUBE),
    (TanhMirror(3.0), CUBE),
    (EntropicMirror(), SIMPLEX),
    (EuclideanSimplexMirror(), SIMPLEX),
]
every_mirror = pytest.mark.parametrize(("mirror", "inside"), MIRRORS, ids=[type(m).__name__ for m, _ in MIRRORS])


@every_mirror
def test_there_and_back(mirror: AbstractMirror, inside: Tensor) -> None:
    assert_close(mirror.to_primal(mirror.to_dual(inside)), inside, "dense")


@every_mirror
def test_a_long_step_stays_in_the_set(mirror: AbstractMirror, inside: Tensor) -> None:
    for factor in (1.0, 1e3):
        (iterate,) = mirror_descent(mirror, lambda x, f=factor: f * points(6, seed=2), inside, 1.0, 1)
        assert iterate.point.isfinite().all()
        assert_close(mirror.to_primal(mirror.to_dual(iterate.point)), iterate.point, "dense")


@given(seed=seeds, eta=st.floats(0.01, 5.0))
def test_a_step_solves_the_problem_it_stands_for(seed: int, eta: float) -> None:
    """Eq. 18: ξ' minimises η ∂f·ξ + D[ξ:ξ_t] over the box; so no point of a fine net does better."""
    mirror = LNEMirror(0.9, 1.5)
    start, slope = points(1, seed=seed).clamp(-1.5, 1.5), points(1, seed=seed + 1)
    (iterate,) = mirror_descent(mirror, lambda _: slope, start, eta, 1)
    net = torch.linspace(-1.5, 1.5, 3001, dtype=torch.float64)[:, None]

    def objective(xi: Tensor) -> Tensor:
        return eta * (slope * xi).sum(-1) + lne_divergence(xi, start, 0.9)

    assert float(objective(iterate.point)) <= float(objective(net).min()) + 1e-12


def test_the_tanh_mirror_is_gradient_descent_on_the_dual_variable() -> None:
    y, slope, tau = points(5), points(5, seed=1), 2.0
    (iterate,) = mirror_descent(TanhMirror(tau), lambda _: slope, torch.tanh(tau * y), 0.1, 1)
    assert_close(iterate.point, torch.tanh(tau * (y - 0.1 * slope)), "dense")
    assert TanhMirror(tau).to_dual(torch.ones(2)).isfinite().all()


def test_the_entropic_mirror_is_the_exponentiated_gradient() -> None:
    slope = points(6, seed=1)
    (iterate,) = mirror_descent(EntropicMirror(), lambda _: slope, SIMPLEX, 0.5, 1)
    expected = SIMPLEX * torch.exp(-0.5 * slope)
    assert_close(iterate.point, expected / expected.sum(), "dense")


def test_the_average_is_weighted_by_the_step_sizes() -> None:
    iterates = list(mirror_descent(EuclideanSimplexMirror(), lambda x: x, SIMPLEX, lambda t: 1 / t, 3))
    visited = torch.stack([SIMPLEX, iterates[0].point, iterates[1].point])
    weight = torch.tensor([1, 1 / 2, 1 / 3], dtype=torch.float64)
    assert_close(iterates[-1].average, (weight[:, None] * visited).sum(0) / weight.sum(), "dense")
    assert [i.step for i in iterates] == [1, 2, 3]


TAU, RADIUS = 0.6, 1.0
TARGET = 0.6 * torch.tanh(points(10, seed=5))


def distance(x: Tensor) -> float:
    """f(x) = Σ |x_i − x*_i|: convex, with a kink at its minimum, f* = 0, ‖∂f‖² ≤ n."""
    return float((x - TARGET).abs().sum())


def averages(steps: list[int]) -> list[float]:
    """f at the average after T steps of the best constant step size for that T, for each T."""
    modulus = 1 - math.tanh(TAU * RADIUS) ** 2
    start = torch.zeros_like(TARGET)
    far, bound = float(lne_divergence(TARGET, start, TAU)), len(TARGET)
    values = []
    for horizon in steps:
        eta = math.sqrt(2 * modulus * far / (bound * horizon))
        last = list(mirror_descent(LNEMirror(TAU, RADIUS), lambda x: (x - TARGET).sign(), start, eta, horizon))[-1]
        values.append(distance(last.average))
        assert values[-1] <= math.sqrt(2 * far * bound / (modulus * horizon))  # Thm 12, with its constant
    return values


def test_thm_12_the_average_nears_the_minimum_as_one_over_the_root_of_t() -> None:
    steps = [2**k for k in range(4, 12)]
    values = averages(steps)
    x = torch.tensor(steps, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).log()
    centred = x - x.mean()
    exponent = float((centred @ y) / centred.square().sum())
    assert -0.65 < exponent < -0.45


@pytest.mark.parametrize("mirror", [EntropicMirror(), EuclideanSimplexMirror()], ids=["entropic", "euclidean"])
def test_a_matrix_game_is_solved_within_the_bound(mirror: AbstractMirror) -> None:
    """min over the simplex of max_j (A x)_j, A skew: the value is 0."""
    half = points(12, 12, seed=3)
    game = half - half.T
    largest = float(game.abs().max())

    def subgradient(x: Tensor) -> Tensor:
        return game[(game @ x).argmax()]

    start = torch.full((12,), 1 / 12, dtype=torch.float64)
    steps = 2000
    if isinstance(mirror, EntropicMirror):
        far, bound = math.log(12), largest  # the gradient's largest entry: the norm dual to the sum of sizes
    else:
        far, bound = 0.5, float(game.norm(dim=1).max())
    eta = math.sqrt(2 * far / steps) / bound
    last = list(mirror_descent(mirror, subgradient, start, eta, steps))[-1]
    value = float((game @ last.average).max())
    assert -1e-12 <= value <= bound * math.sqrt(2 * far / steps)


@pytest.mark.parametrize(
    "make", [lambda: LNEMirror(0.0, 1.0), lambda: LNEMirror(1.0, math.inf), lambda: TanhMirror(-1)]
)
def test_impossible_mirrors_are_refused(make: object) -> None:
    with pytest.raises(ConfigError, match="must be a positive number"):
        make()  # type: ignore[operator]


def test_phi_is_strongly_convex_on_the_box_with_the_stated_modulus() -> None:
    xi = torch.linspace(-RADIUS, RADIUS, 101, dtype=torch.float64)[:, None]
    second = torch.autograd.functional.hessian(lambda x: convex_function(x, TAU).sum(), xi).flatten()
    modulus = 1 - math.tanh(TAU * RADIUS) ** 2
    assert math.isclose(float(second[second > 0].min()), modulus, rel_tol=1e-9)
