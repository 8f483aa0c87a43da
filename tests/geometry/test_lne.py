"""The LNE metric: facts the implementation rests on, each confirmed against dense linear algebra in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.geometry import LNEMetric, StrongInverse, largest_tau, outer_difference_norm_squared
from straddling import noise
from tolerances import assert_close

sizes = st.integers(1, 40)
seeds = st.integers(0, 1000)


def weights(*shape: int, seed: int = 0) -> Tensor:
    return noise(*shape, seed=seed, dtype=torch.float64)


@given(n=sizes, seed=seeds, rho=st.floats(0.01, 3.0))
def test_positive_definite_exactly_while_the_norm_is_below_one(n: int, seed: int, rho: float) -> None:
    u = weights(n, seed=seed)
    u = u / u.norm() * rho**0.5
    if u.abs().max() >= 0.999:
        return
    metric = LNEMetric(torch.atanh(u), 1.0)
    eigenvalues = torch.linalg.eigvalsh(metric.as_matrix())
    assert bool(eigenvalues.min() > 0) == bool(metric.norm_squared() < 1)
    expected = torch.cat([1 - metric.norm_squared(), torch.ones(n - 1, dtype=u.dtype)])  # 1, n − 1 times
    assert_close(eigenvalues, expected.sort().values, "dense")


@given(n=sizes, seed=seeds, tau=st.floats(1e-3, 3.0))
def test_diagonally_dominant_exactly_where_the_margin_is_positive(n: int, seed: int, tau: float) -> None:
    metric = LNEMetric(weights(n, seed=seed), tau)
    g = metric.as_matrix()
    off = g.abs().sum(-1) - g.diagonal().abs()
    assert_close(metric.dominance_margin(), (g.diagonal() - off).min(), "dense")
    if bool(metric.dominance_margin() > 1e-9):
        assert metric.norm_squared() < 1  # dominance is the stricter condition


def test_dominance_is_far_stricter_than_positive_definiteness() -> None:
    """For small u it is about max|u|·Σ|u| < 1, while ‖u‖² < 1 suffices for a metric."""
    w = weights(36864)
    metric = LNEMetric(w, largest_tau(w, 0.9))
    assert metric.eigenvalue_bounds()[0] > 0
    assert metric.dominance_margin() < 0
    u = metric.u.abs()
    product = float(u.max() * u.sum())
    assert product > 1
    assert math.isclose(float(metric.dominance_margin()), 1 - product, rel_tol=1e-9)


def test_at_dominance_the_weak_approximation_hardly_moves_a_gradient_unless_it_lies_along_u() -> None:
    """The relative correction is ‖u‖²·|cos(u, v)|: a thousandth for a gradient that does not know u, ‖u‖² along it."""
    n = 36864
    w = weights(n)
    tau = 0.01
    while LNEMetric(w, tau).dominance_margin() <= 0:
        tau /= 1.1
    metric = LNEMetric(w, tau, "weak")
    norm = float(metric.norm_squared())

    def correction(v: Tensor) -> float:
        return float((metric.solve(v) - v).norm() / v.norm())

    moved = [correction(weights(n, seed=seed)) for seed in range(1, 9)]
    assert 0 < max(moved) < 4 * norm / n**0.5 < 8e-3
    assert math.isclose(correction(metric.u), norm, rel_tol=1e-9)
    assert 0.1 < norm < 0.5  # not idle: it is the direction that decides


def test_the_hessian_of_phi_is_diagonal_and_eq_16_is_not_it() -> None:
    xi, tau = weights(5), 0.7
    hessian = torch.autograd.functional.hessian(lambda x: (torch.cosh(tau * x).log() / tau**2).sum(), xi)
    assert_close(hessian, torch.diag(1 - torch.tanh(tau * xi).square()), "dense")
    paper = LNEMetric(xi, tau).as_matrix()
    assert_close(paper.diagonal(), hessian.diagonal(), "dense")
    assert (paper - hessian).abs().max() > 0.01


@given(n=sizes, batch=st.lists(st.integers(1, 3), max_size=2), seed=seeds, rho=st.floats(0.01, 0.99))
def test_operations_against_the_dense_matrix(n: int, batch: list[int], seed: int, rho: float) -> None:
    w, v = weights(*batch, n, seed=seed), weights(*batch, n, seed=seed + 1)
    metric = LNEMetric(w, largest_tau(w, rho))
    g = metric.as_matrix()
    assert metric.shape == g.shape == torch.Size((*batch, n, n))
    assert_close(g, g.mT, "dense")
    assert_close(metric.matvec(v), (g @ v.unsqueeze(-1)).squeeze(-1), "dense")
    assert_close(metric.solve(v), torch.linalg.solve(g, v), "dense")
    assert_close(metric.solve(metric.matvec(v)), v, "dense")
    assert_close(metric.logdet(), torch.logdet(g), "dense")
    low, high = metric.eigenvalue_bounds()
    eigenvalues = torch.linalg.eigvalsh(g)
    assert_close(low, eigenvalues.amin(-1), "dense")
    assert_close(high, eigenvalues.amax(-1), "dense")


@given(n=sizes, seed=seeds, tau=st.floats(1e-3, 1.0))
def test_the_weak_inverse_is_its_formula(n: int, seed: int, tau: float) -> None:
    w, v = weights(n, seed=seed), weights(n, seed=seed + 1)
    metric = LNEMetric(w, tau, "weak")
    u = metric.u
    assert_close(metric.solve(v), (torch.eye(n, dtype=u.dtype) + torch.outer(u, u)) @ v, "dense")


@given(n=st.integers(2, 40), seed=seeds, shrink=st.floats(0.05, 0.999))
def test_the_weak_inverse_is_near_the_exact_one_where_g_is_dominant(n: int, seed: int, shrink: float) -> None:
    """The difference is u (u·v)·‖u‖²/(1 − ‖u‖²), so that its norm is at most ‖v‖·‖u‖⁴/(1 − ‖u‖²)."""
    w, v = weights(n, seed=seed), weights(n, seed=seed + 1)
    tau = 1.0
    while LNEMetric(w, tau).dominance_margin() <= 0:
        tau *= shrink
    exact, weak = LNEMetric(w, tau), LNEMetric(w, tau, "weak")
    norm = float(exact.norm_squared())
    apart = (exact.solve(v) - weak.solve(v)).norm()
    assert float(apart) <= float(v.norm()) * norm**2 / (1 - norm) * (1 + 1e-9) + 1e-15


def test_a_batch_is_independent_metrics() -> None:
    w, v = weights(4, 7), weights(4, 7, seed=1)
    tau = largest_tau(w, 0.5)
    assert tau.shape == (4, 1)
    together = LNEMetric(w, tau).solve(v)
    alone = torch.stack([LNEMetric(a, largest_tau(a, 0.5)).solve(b) for a, b in zip(w, v, strict=True)])
    assert_close(together, alone, "dense")


@pytest.mark.parametrize("operation", ["solve", "matvec", "logdet"])
def test_gradients_against_the_dense_route(operation: str) -> None:
    w, v = weights(6).requires_grad_(), weights(6, seed=1).requires_grad_()
    tau = 0.15
    probe = weights(6, seed=2)
    metric = LNEMetric(w, tau)
    u = torch.tanh(w * tau)
    g = torch.eye(6, dtype=w.dtype) - torch.outer(u, u)
    if operation == "logdet":
        pairs = metric.logdet(), torch.logdet(g)
    elif operation == "solve":
        pairs = metric.solve(v) @ probe, torch.linalg.solve(g, v) @ probe
    else:
        pairs = metric.matvec(v) @ probe, (g @ v) @ probe
    ours, dense = (torch.autograd.grad(value, [w, v], allow_unused=True) for value in pairs)
    for a, b in zip(ours, dense, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert_close(a, b, "dense")


def test_outside_the_metric_the_determinant_says_so() -> None:
    metric = LNEMetric(weights(30), 2.0)
    assert metric.norm_squared() > 1
    assert metric.logdet().isnan()
    assert metric.eigenvalue_bounds()[0] < 0


@given(k=st.integers(1, 5), n=st.integers(1, 20), batch=st.lists(st.integers(1, 3), max_size=2), seed=seeds)
def test_outer_difference_against_the_dense_frobenius_norm(k: int, n: int, batch: list[int], seed: int) -> None:
    c, a, b = weights(k, seed=seed), weights(k, *batch, n, seed=seed + 1), weights(k, *batch, n, seed=seed + 2)
    outer = a.unsqueeze(-1) * a.unsqueeze(-2) - b.unsqueeze(-1) * b.unsqueeze(-2)
    dense = torch.tensordot(c, outer, dims=1).square().sum((-2, -1))
    found = outer_difference_norm_squared(c, a, b)
    assert found.shape == torch.Size(batch)
    assert_close(found, dense, "frobenius")


@pytest.mark.parametrize("blocks", [(), (2,)], ids=["layer", "blocks"])
def test_outer_difference_gradient_by_finite_differences(blocks: tuple[int, ...]) -> None:
    c, b = weights(3, seed=1), weights(3, *blocks, 4, seed=3)
    a = weights(3, *blocks, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: outer_difference_norm_squared(c, x, b), a)
    assert torch.autograd.gradcheck(lambda x: outer_difference_norm_squared(x, a.detach(), b), c.requires_grad_())


def test_delta_cancels_in_the_flows_residual() -> None:
    """(g1 − g0) − (g0 − g2)/k + (g3 − g4)/j of metrics δ − u uᵀ, dense, equals three differences of outer products."""
    w = [weights(6, seed=seed) for seed in range(5)]
    g = [LNEMetric(x, 0.2) for x in w]
    k = j = 2
    g1, g0, g2, g3, g4 = (metric.as_matrix() for metric in g)
    dense = (g1 - g0) - (g0 - g2) / k + (g3 - g4) / j
    u1, u0, u2, u3, u4 = (metric.u for metric in g)
    c = torch.tensor([-1.0, 1 / k, -1 / j], dtype=torch.float64)
    found = outer_difference_norm_squared(c, torch.stack([u1, u0, u3]), torch.stack([u0, u2, u4]))
    assert_close(found, dense.square().sum(), "frobenius")


@pytest.mark.parametrize(
    ("tau", "options", "message"),
    [
        (0.0, {}, "tau=0.0 must be a positive number"),
        (-1.0, {}, "tau=-1.0 must be a positive number"),
        (math.nan, {}, "tau=nan must be a positive number"),
        (math.inf, {}, "tau=inf must be a positive number"),
        (0.1, {"inverse": "dense"}, "inverse='dense' of the LNE metric must be exact, weak or strong"),
        (0.1, {"strong": StrongInverse(5)}, "serves inverse='strong' alone"),
        (0.1, {"inverse": "strong", "strong": StrongInverse(6)}, "for blocks of 6 weights, the metric has 5"),
    ],
)
def test_impossible_metrics_are_refused(tau: float, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LNEMetric(weights(5), tau, **options)  # type: ignore[arg-type]
