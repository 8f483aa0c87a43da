"""The rules for τ: never beyond their bound, close to it, and checked where asked."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.geometry import LNEMetric, TauRule, largest_dominant_tau, largest_tau, require_positive_definite
from straddling import noise
from tolerances import assert_close

seeds = st.integers(0, 1000)


def weights(*shape: int, seed: int = 0) -> Tensor:
    return noise(*shape, seed=seed, dtype=torch.float64)


@given(
    n=st.integers(1, 300),
    seed=seeds,
    rho=st.floats(0.001, 0.999),
    size=st.sampled_from([1e-6, 1e-2, 1.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_largest_tau_never_oversteps(n: int, seed: int, rho: float, size: float, dtype: torch.dtype) -> None:
    w = (weights(n, seed=seed) * size).to(dtype)
    tau = largest_tau(w, rho)
    assert (tau.shape, tau.dtype) == ((1,), dtype)
    reached = torch.tanh(w.double() * tau.double()).square().sum()
    assert float(reached) <= rho
    assert (
        float(reached) >= (0.9 if n == 1 else 0.95) * rho or rho > 0.95
    )  # and is near, where the bound is not extreme


@given(n=st.integers(50, 3000), seed=seeds, rho=st.sampled_from([0.1, 0.5, 0.9]))
def test_largest_tau_is_within_a_percent_after_one_step_for_a_layer(n: int, seed: int, rho: float) -> None:
    w = weights(n, seed=seed)
    for steps, share in ((1, 0.99), (6, 0.99999)):
        reached = torch.tanh(w * largest_tau(w, rho, iterations=steps)).square().sum()
        assert share * rho <= float(reached) <= rho


def test_largest_tau_scales_against_the_weights() -> None:
    w = weights(50)
    assert_close(largest_tau(4 * w, 0.5), largest_tau(w, 0.5) / 4, "dense")


def test_largest_tau_of_zeros_is_one_and_of_a_zero_block_harmless() -> None:
    assert largest_tau(torch.zeros(5), 0.5).item() == 1.0
    mixed = largest_tau(torch.stack([torch.zeros(5), torch.ones(5)]), 0.5)
    assert mixed[0].item() == 1.0
    assert mixed.isfinite().all()
    assert_close(LNEMetric(torch.zeros(5), 1.0).solve(torch.ones(5)), torch.ones(5), "formula")


def test_largest_tau_of_a_single_element() -> None:
    w = torch.tensor([-2.5], dtype=torch.float64)
    exact = math.atanh(math.sqrt(0.5)) / 2.5
    tau = float(largest_tau(w, 0.5))
    assert 0.99 * exact <= tau <= exact


def margin_at(w: Tensor, tau: Tensor) -> float:
    return float(LNEMetric(w.double(), tau.double()).dominance_margin().min())


@given(
    n=st.integers(1, 300),
    seed=seeds,
    margin=st.floats(0.0, 0.99),
    size=st.sampled_from([1e-6, 1e-2, 1.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_largest_dominant_tau_never_oversteps(
    n: int, seed: int, margin: float, size: float, dtype: torch.dtype
) -> None:
    w = (weights(n, seed=seed) * size).to(dtype)
    tau = largest_dominant_tau(w, margin)
    assert (tau.shape, tau.dtype) == ((1,), dtype)
    assert margin_at(w, tau) >= margin
    if n >= 5:
        assert margin_at(w, 1.001 * tau) < margin


def test_dominance_asks_for_a_far_smaller_tau_as_a_layer_grows() -> None:
    """About 1/√(max|w| Σ|w|) against 1/‖w‖: for normal weights their ratio falls as √(1/max|w|), with √n outside."""
    ratios = [float(largest_dominant_tau(w, 0.1) / largest_tau(w, 0.9)) for w in map(weights, (8, 128, 36864))]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 0.6 < 1


def test_dominance_of_blocks_and_of_zeros() -> None:
    w = torch.stack([torch.zeros(5), torch.ones(5), torch.full((5,), 2.0)])
    tau = largest_dominant_tau(w, 0.1)
    assert tau[0].item() == 1.0
    assert_close(tau[1], 2 * tau[2], "formula")


@pytest.mark.parametrize("rule", [TauRule(), TauRule("dominance", margin=0.2), TauRule(0.3), TauRule(5)])
def test_a_rule_is_what_it_names(rule: TauRule) -> None:
    w = weights(3, 20)
    expected = {
        "auto": largest_tau(w, 0.9),
        "dominance": largest_dominant_tau(w, 0.2),
        0.3: torch.full((3, 1), 0.3, dtype=w.dtype),
        5: torch.full((3, 1), 5.0, dtype=w.dtype),
    }[rule.tau]
    assert torch.equal(rule(w), expected)
    assert torch.equal(rule.admissible(w), expected.minimum(largest_tau(w, 0.9)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": "large"}, "tau='large'"),
        ({"tau": 0.0}, "tau=0.0"),
        ({"tau": math.inf}, "tau=inf"),
        ({"tau": math.nan}, "tau=nan"),
        ({"rho": 1.0}, "rho=1.0"),
        ({"rho": 0.0}, "rho=0.0"),
        ({"margin": 1.0}, "margin=1.0"),
        ({"margin": -0.1}, "margin=-0.1"),
    ],
)
def test_impossible_rules_are_refused_by_name(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        TauRule(**options)  # type: ignore[arg-type]


def test_positive_definiteness_is_asked_for_by_layer() -> None:
    w = weights(4, 50)
    tau = largest_tau(w, 0.8)
    assert math.isclose(require_positive_definite(w, tau, "conv1"), 0.2, rel_tol=1e-3)
    with pytest.raises(ConfigError, match=r"layer 'conv1'.*given per block.*one of its 4 blocks"):
        require_positive_definite(w, 2 * tau, "conv1")


def test_the_largest_admissible_tau_that_the_error_names_is_admissible_and_the_largest() -> None:
    w = weights(50)
    with pytest.raises(ConfigError, match=r"layer 'stage1\.0\.conv1': at τ = 2 the metric is not positive") as caught:
        require_positive_definite(w, 2.0, "stage1.0.conv1")
    norm, tau = map(float, re.findall(r"\d+\.\d+", str(caught.value).split("definite")[1]))
    assert math.isclose(norm, float(LNEMetric(w, 2.0).norm_squared()), rel_tol=1e-3)
    assert require_positive_definite(w, tau * 0.999, "conv") > 0
    with pytest.raises(ConfigError):
        require_positive_definite(w, tau * 1.001, "conv")
