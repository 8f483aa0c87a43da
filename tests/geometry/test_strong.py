"""The strong inverse: a network, so that what it reaches is measured against the dense inverse, not derived."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.geometry import STRONG_LIMIT, LNEMetric, StrongInverse, TauRule
from straddling import noise
from tolerances import assert_close


def weights(*shape: int, seed: int = 0) -> Tensor:
    return noise(*shape, seed=seed, dtype=torch.float64)


def metric(*shape: int, seed: int = 0, rule: TauRule | None = None) -> LNEMetric:
    w = weights(*shape, seed=seed)
    return LNEMetric(w, (rule or TauRule())(w))


@pytest.mark.parametrize("rule", [TauRule(), TauRule("dominance")], ids=["positive", "dominant"])
@pytest.mark.parametrize("n", [1, 24])
def test_trained_on_the_metric_itself_it_is_the_inverse(n: int, rule: TauRule) -> None:
    w, v = weights(n), weights(n, seed=1)
    exact = LNEMetric(w, rule(w))
    strong = LNEMetric(w, rule(w), "strong", StrongInverse.fitted_to(exact, steps=300))
    assert_close(strong.solve(v), torch.linalg.solve(exact.as_matrix(), v), "strong")


def test_without_a_network_it_trains_one_and_blocks_share_it() -> None:
    w, v = weights(2, 2, 9), weights(2, 2, 9, seed=1)
    tau = TauRule()(w)
    assert_close(LNEMetric(w, tau, "strong").solve(v), LNEMetric(w, tau).solve(v), "strong")


def test_gradients_are_those_of_the_exact_inverse() -> None:
    """Those of the network would be the slope of an interpolation through one point."""
    w, v, probe = weights(6).requires_grad_(), weights(6, seed=1).requires_grad_(), weights(6, seed=2)
    tau = TauRule()(w.detach())
    network = StrongInverse.fitted_to(LNEMetric(w, tau), steps=300)
    metrics = LNEMetric(w, tau, "strong", network), LNEMetric(w, tau)
    ours, exact = (torch.autograd.grad(metric.solve(v) @ probe, [w, v]) for metric in metrics)
    for a, b in zip(ours, exact, strict=True):
        assert_close(a, b, "strong")


@pytest.fixture(scope="module")
def sampled() -> StrongInverse:
    """A network of blocks of 6 weights, trained on others each step."""
    network = StrongInverse(6, dtype=torch.float64)

    def sample(generator: torch.Generator) -> LNEMetric:
        w = torch.randn(32, 6, generator=generator, dtype=torch.float64)
        return LNEMetric(w, TauRule(rho=0.5)(w))

    network.fit(sample, steps=400)
    return network


def test_trained_on_a_distribution_it_helps_on_metrics_that_it_has_not_seen(sampled: StrongInverse) -> None:
    """Half of what the weak inverse misses, at ‖u‖² = 0.5: an interpolation, not an inverse."""
    unseen = metric(500, 6, seed=7, rule=TauRule(rho=0.5))
    identity = StrongInverse(6, dtype=torch.float64)
    assert sampled.misfit(unseen).mean() < 0.2 * identity.misfit(unseen).mean()
    v = weights(500, 6, seed=8)
    exact, weak = unseen.solve(v), v + unseen.u * (unseen.u * v).sum(-1, keepdim=True)
    strong = LNEMetric(unseen.u.atanh(), 1.0, "strong", sampled).solve(v)
    assert (strong - exact).norm() < 0.5 * (weak - exact).norm()


def test_it_starts_at_the_identity_and_is_symmetric(sampled: StrongInverse) -> None:
    g = metric(4, 6)
    eye = torch.eye(6, dtype=torch.float64).expand(4, 6, 6)
    assert torch.equal(StrongInverse(6, dtype=torch.float64).matrix(g), eye)
    inverse = sampled.matrix(g)
    assert torch.equal(inverse, inverse.mT)
    misfit = torch.linalg.matrix_norm(eye - g.as_matrix() @ inverse)
    assert_close(sampled.misfit(g), misfit, "dense")


def test_a_seed_decides_and_the_ambient_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    g = metric(5)
    first, second = (StrongInverse.fitted_to(g, steps=5).matrix(g) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(StrongInverse(5).first.weight, StrongInverse(5, seed=1).first.weight)


def test_dtypes_of_lower_precision_keep_theirs() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        w, v = noise(5, dtype=dtype), noise(5, seed=1, dtype=dtype)
        network = StrongInverse(5)
        assert LNEMetric(w, 0.2, "strong", network).solve(v).dtype == dtype


def test_blocks_beyond_the_limit_are_refused_with_the_alternatives() -> None:
    with pytest.raises(ConfigError, match=r"1 to 64 weights, not n = 65.*smaller blocks, or inverse='exact' or 'weak'"):
        LNEMetric(weights(STRONG_LIMIT + 1), 0.1, "strong")


def test_sampled_metrics_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="for blocks of 5 weights, the metric has 6"):
        StrongInverse(5).fit(lambda _: metric(6), steps=1)
