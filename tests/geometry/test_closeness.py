"""Closeness of metrics (Def. 21) and margins, for matrices and, in O(n), for operators."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowbit.geometry import (
    HessianMetric,
    LNEMetric,
    dominance_margin,
    epsilon_closeness,
    largest_tau,
    positive_definite_margin,
)
from straddling import noise
from tolerances import assert_close

sizes = st.integers(1, 20)
seeds = st.integers(0, 1000)
batches = st.lists(st.integers(1, 3), max_size=2)


def lne(*shape: int, seed: int, rho: float = 0.9) -> LNEMetric:
    w = noise(*shape, seed=seed, dtype=torch.float64)
    return LNEMetric(w, largest_tau(w, rho))


def positive(n: int, seed: int) -> Tensor:
    root = noise(n, n, seed=seed, dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(n, dtype=torch.float64)


@given(n=sizes, seed=seeds)
def test_it_is_the_smallest_epsilon(n: int, seed: int) -> None:
    g, g0 = positive(n, seed), positive(n, seed + 1)
    epsilon = epsilon_closeness(g, g0)
    assert_close(epsilon, epsilon_closeness(g0, g), "dense")

    def holds(e: Tensor) -> bool:
        above, below = (1 + e) * g0 - g, g - g0 / (1 + e)
        scale = float(g.abs().max() + g0.abs().max()) * float(1 + e)
        return min(float(positive_definite_margin(m)) for m in (above, below)) >= -1e-12 * scale

    assert holds(epsilon * (1 + 1e-9) + 1e-9)
    assert not holds(epsilon * 0.99)


@given(n=sizes, batch=batches, seed=seeds, rho=st.floats(0.05, 0.95), rho0=st.floats(0.05, 0.95))
def test_operators_agree_with_matrices(n: int, batch: list[int], seed: int, rho: float, rho0: float) -> None:
    g, g0 = lne(*batch, n, seed=seed, rho=rho), lne(*batch, n, seed=seed + 1, rho=rho0)
    assert_close(g.epsilon_closeness(g0), epsilon_closeness(g.as_matrix(), g0.as_matrix()), "dense")
    w, w0 = (noise(*batch, n, seed=seed + k, dtype=torch.float64) for k in range(2))
    h, h0 = HessianMetric(w, rho), HessianMetric(w0, rho0)
    assert_close(h.epsilon_closeness(h0), epsilon_closeness(h.as_matrix(), h0.as_matrix()), "dense")


@given(n=sizes, seed=seeds, rho=st.floats(0.05, 0.95))
def test_flat_space_is_as_far_as_the_smallest_eigenvalue_says(n: int, seed: int, rho: float) -> None:
    g = lne(n, seed=seed, rho=rho)
    flat = LNEMetric(torch.zeros(n, dtype=torch.float64), 1.0)
    assert_close(g.epsilon_closeness(flat), 1 / g.positive_definite_margin() - 1, "dense")
    assert flat.epsilon_closeness(flat) == g.epsilon_closeness(g) == 0


def test_it_keeps_its_digits_for_metrics_that_nearly_agree() -> None:
    """Two steps of training apart in float32, where a difference of dense matrices has hardly a digit left."""
    w = noise(1000, dtype=torch.float64)
    tau = largest_tau(w, 0.9)
    moved = w + 1e-5 * noise(1000, seed=1, dtype=torch.float64)
    exact = epsilon_closeness(LNEMetric(moved, tau).as_matrix(), LNEMetric(w, tau).as_matrix())
    w32, moved32 = w.float(), moved.float()
    ours = LNEMetric(moved32, tau.float()).epsilon_closeness(LNEMetric(w32, tau.float()))
    assert math.isclose(float(ours), float(exact), rel_tol=0.05)


def test_what_is_no_metric_is_close_to_none() -> None:
    w = noise(30, dtype=torch.float64)
    outside, inside = LNEMetric(w, 2.0), LNEMetric(w, largest_tau(w, 0.5))
    assert outside.positive_definite_margin() < 0 < inside.positive_definite_margin()
    for g, g0 in ((outside, inside), (inside, outside), (outside, outside)):
        assert g.epsilon_closeness(g0) == math.inf
        assert epsilon_closeness(g.as_matrix(), g0.as_matrix()) == math.inf


@given(n=sizes, seed=seeds, tau=st.floats(1e-3, 3.0))
def test_margins_of_operators_are_those_of_their_matrices(n: int, seed: int, tau: float) -> None:
    w = noise(n, seed=seed, dtype=torch.float64)
    for metric in (LNEMetric(w, tau), HessianMetric(w, tau)):
        g = metric.as_matrix()
        assert_close(metric.dominance_margin(), dominance_margin(g), "dense")
        assert_close(metric.positive_definite_margin(), positive_definite_margin(g), "dense")


@pytest.mark.parametrize(
    ("matrix", "margin"),
    [([[2.0, 1.0], [1.0, 3.0]], 1.0), ([[1.0, -2.0], [-2.0, 5.0]], -1.0), ([[-3.0, 0.0], [0.0, 1.0]], -3.0)],
)
def test_dominance_margin_by_hand(matrix: list[list[float]], margin: float) -> None:
    assert dominance_margin(torch.tensor(matrix)).item() == margin
