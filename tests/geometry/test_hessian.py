"""The Hessian metric: what is not said for every operator by the contract."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.geometry import HessianMetric, convex_function, diagonal_difference_norm_squared
from straddling import noise
from tolerances import assert_close

seeds = st.integers(0, 1000)


def weights(*shape: int, seed: int = 0) -> Tensor:
    return noise(*shape, seed=seed, dtype=torch.float64)


@given(n=st.integers(1, 8), seed=seeds, tau=st.floats(1e-3, 3.0))
def test_it_is_the_hessian_of_phi(n: int, seed: int, tau: float) -> None:
    w = weights(n, seed=seed)
    hessian = torch.autograd.functional.hessian(lambda x: convex_function(x, tau), w)
    assert_close(HessianMetric(w, tau).as_matrix(), hessian, "dense")


def test_far_out_it_is_small_and_neither_zero_nor_infinite() -> None:
    w = torch.tensor([10.0, -40.0])
    metric = HessianMetric(w, 1.0)
    exact = 1 / torch.cosh(w.double()).square()
    assert_close(metric.diagonal, exact.float(), "formula")
    assert metric.diagonal.min() > 0
    assert metric.solve(torch.ones(2)).isfinite().all()
    assert_close(HessianMetric(1000 * w, 1.0).logdet(), torch.tensor(-100000.0 + 4 * 0.6931472), "formula")


@given(k=st.integers(1, 5), n=st.integers(1, 20), batch=st.lists(st.integers(1, 3), max_size=2), seed=seeds)
def test_the_norm_of_differences_against_the_dense_frobenius_norm(k: int, n: int, batch: list[int], seed: int) -> None:
    c, a, b = weights(k, seed=seed), weights(k, *batch, n, seed=seed + 1), weights(k, *batch, n, seed=seed + 2)
    a, b = torch.tanh(a), torch.tanh(b)
    metrics = torch.diag_embed(1 - b.square()) - torch.diag_embed(1 - a.square())
    dense = torch.tensordot(c, metrics, dims=1).square().sum((-2, -1))
    found = diagonal_difference_norm_squared(c, a, b)
    assert found.shape == torch.Size(batch)
    assert_close(found, dense, "frobenius")


def test_the_norm_of_differences_keeps_its_digits_and_its_gradient() -> None:
    c, b = weights(3, seed=1), weights(3, 4, seed=3)
    a = b * (1 + 1e-6)
    exact = diagonal_difference_norm_squared(c, a, b)
    rounded = diagonal_difference_norm_squared(c.float(), a.float(), b.float())
    assert abs(float(rounded / exact) - 1) < 0.3  # a and b themselves are rounded at 6e-8 of 1e-6
    assert torch.autograd.gradcheck(lambda x: diagonal_difference_norm_squared(c, x, b), weights(3, 4).requires_grad_())


def test_a_tau_that_is_no_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tau=0 must be a positive number"):
        HessianMetric(torch.ones(3), 0)
