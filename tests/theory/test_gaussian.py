"""The Gaussian one-hidden-layer network: closed forms, quadrature and samples, three routes to the same numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators import build_estimator, staircase
from lowbit.quantizers import AbstractQuantizer, build_quantizer
from lowbit.theory.gaussian import (
    BinaryRule,
    Estimate,
    Frame,
    Teacher,
    binary_coarse_gradient,
    binary_gradients,
    binary_loss,
    binary_opposite,
    gauss_legendre,
    jumps,
    proxy,
    sample_gradients,
    thresholds,
)
from lowbit.theory.gaussian_population import Population, critical_points, descend_population
from straddling import noise
from tolerances import assert_close

F64 = torch.float64
STAIRCASE = "staircase(scale=fixed, resolution=1)"
RULES: tuple[BinaryRule, ...] = ("relu", "clipped", "identity")
STAIRCASES = [(STAIRCASE, 1), (STAIRCASE, 2), ("unsigned", 2), ("sign", 1), ("lsq", 2), ("ternary", 2)]
ONE_SIDED = ("relu", "clipped", "log-tailed", "reverse-exponential")


def teacher(m: int = 4, d: int = 3, total: float = 1.1, norm: float = 1.0) -> Teacher:
    """‖v*‖ = 1 and 1ᵀv* = total: with total² < (m + 1)/2 there is a spurious local minimum."""
    v = noise(m, seed=1, dtype=F64)
    v = v - v.mean()
    v = v / v.norm() * math.sqrt(1 - total**2 / m) + total / m
    w = noise(d, seed=2, dtype=F64)
    return Teacher(v, norm * w / w.norm())


def students(target: Teacher, angles: list[float], norm: float = 1.0) -> tuple[Tensor, Tensor]:
    """For each angle a random v, and a w at that angle to the teacher's."""
    unit = target.w / target.w.norm()
    other = noise(len(unit), seed=3, dtype=F64)
    other = other - (other @ unit) * unit
    turn = torch.tensor(angles, dtype=F64)[:, None]
    w = norm * (turn.cos() * unit + turn.sin() * other / other.norm())
    return noise(len(angles), len(target.v), seed=4, dtype=F64), w


def quantizer(spec: str, bits: int) -> AbstractQuantizer:
    return build_quantizer(spec, bits)


def binary(target: Teacher) -> Population:
    return Population(quantizer(STAIRCASE, 1), target)


ANGLES = [0.0, 1e-7, 1e-3, 0.3, math.pi / 2, 2.0, 3.0, math.pi - 1e-3, math.pi - 1e-7, math.pi]


@pytest.mark.parametrize("norm", [0.05, 1.0, 7.0])
def test_quadrature_is_the_closed_forms_for_one_bit(norm: float) -> None:
    target = teacher(norm=0.6)
    v, w = students(target, ANGLES, norm)
    population = binary(target)
    assert_close(population.loss(v, w), binary_loss(v, w, target), "closed form")
    for found, expected in zip(population.gradients(v, w), binary_gradients(v, w, target), strict=True):
        assert_close(found, expected, "closed form")
    for rule in RULES:
        found = population.coarse_gradient(v, w, build_estimator(rule))
        assert_close(found, binary_coarse_gradient(v, w, target, rule), "closed form")


@pytest.mark.parametrize(("spec", "bits"), [*STAIRCASES, (STAIRCASE, 4)])
def test_gradients_by_finite_differences(spec: str, bits: int) -> None:
    target = teacher(norm=1.3)
    v, w = students(target, [0.02, 0.4, 1.4, 2.5, 3.1], 0.8)
    population = Population(quantizer(spec, bits), target)
    for index, (gradient, point) in enumerate(zip(population.gradients(v, w), (v, w), strict=True)):
        for i in range(point.shape[-1]):
            step = torch.zeros_like(point)
            step[:, i] = 1e-6
            up, down = ((v + s * step, w) if index == 0 else (v, w + s * step) for s in (1, -1))
            assert_close(gradient[:, i], (population.loss(*up) - population.loss(*down)) / 2e-6, "finite difference")


@pytest.mark.parametrize(("spec", "bits"), STAIRCASES)
def test_covariance_against_its_own_derivative_integrated(spec: str, bits: int) -> None:
    """γ(θ) = −∫ ∂γ/∂θ from θ to π/2, where it is 0: E over a and Price's theorem are independent routes."""
    target = teacher(norm=0.9)
    population = Population(quantizer(spec, bits), target)
    nodes, weights = gauss_legendre(48)
    half = (math.pi / 2 - 0.3) / 2
    _, w = students(target, [0.3, *(0.3 + half * (1 + nodes)).tolist()], 1.2)
    moments = population.moments(Frame.of(w, target))
    assert_close(moments.gamma[0], -half * (weights * moments.gamma_by_theta[1:]).sum(), "closed form")


def within(estimate: Estimate, expected: Tensor) -> None:
    """To five standard errors, which are small enough to tell: the means differ from 0 by far more somewhere."""
    assert ((estimate.mean - expected).abs() <= 5 * estimate.error + 1e-12).all()
    assert (expected.abs() > 20 * estimate.error).any()


@pytest.mark.parametrize(
    ("spec", "bits", "estimator"),
    [
        *[(STAIRCASE, 1, name) for name in (*ONE_SIDED, "identity")],
        *[(STAIRCASE, 2, name) for name in (*ONE_SIDED, "identity")],
        ("unsigned", 2, "clipped"),
        ("unsigned", 4, "log-tailed"),
        ("sign", 1, "approxsign"),
        ("sign", 1, "reste(o=3)"),
        ("lsq", 2, "identity"),
        ("ternary", 2, "clipped(c=1.5)"),
    ],
)
def test_population_against_samples(spec: str, bits: int, estimator: str) -> None:
    target = teacher(norm=1.2)
    v, w = students(target, [0.4, 1.6, 2.8], 0.8)
    rule, step = build_estimator(estimator), quantizer(spec, bits)
    population = Population(step, target)
    found = sample_gradients(v, w, target, step, rule, 20000, torch.Generator().manual_seed(0))
    by_v, _ = population.gradients(v, w)
    within(found.loss, population.loss(v, w))
    within(found.v, by_v)
    within(found.w, population.coarse_gradient(v, w, rule))


def test_closed_forms_against_samples() -> None:
    target = teacher()
    v, w = students(target, [0.5, 1.5, 2.5])
    for rule in RULES:
        generator = torch.Generator().manual_seed(1)
        found = sample_gradients(v, w, target, quantizer(STAIRCASE, 1), build_estimator(rule), 20000, generator)
        within(found.loss, binary_loss(v, w, target))
        within(found.v, binary_gradients(v, w, target)[0])
        within(found.w, binary_coarse_gradient(v, w, target, rule))


@pytest.mark.parametrize("batch", [48, 16])
def test_samples_agree_with_automatic_differentiation(batch: int) -> None:
    """Sample for sample: a plain network with the library's staircase, and an estimator that is not linear."""
    target, rule, step = teacher(), build_estimator("ewgs(delta=0.5)"), quantizer("unsigned", 2)
    v, w = students(target, [0.9], 1.5)
    v, w = v[0].requires_grad_(), w[0].requires_grad_()
    inputs = torch.randn(48, 4, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    error = staircase(inputs @ w, step, rule) @ v - step.discretize(inputs @ target.w) @ target.v
    losses = error.square() / 2
    gradients = [torch.autograd.grad(loss, [v, w], retain_graph=True) for loss in losses]
    found = sample_gradients(v, w, target, step, rule, 48, torch.Generator().manual_seed(2), batch)
    by_v, by_w = (torch.stack(parts) for parts in zip(*gradients, strict=True))
    for estimate, values in ((found.loss, losses.detach()), (found.v, by_v), (found.w, by_w)):
        assert_close(estimate.mean, values.mean(0), "sum")
        assert_close(estimate.error, values.std(0) / math.sqrt(48), "sum")


@pytest.mark.parametrize("norm", [0.02, 0.1])
def test_at_the_spurious_minimum_one_sided_estimators_vanish_and_the_identity_does_not(norm: float) -> None:
    """Also for more bits, with ‖w‖ so small that the student emits two codes."""
    for bits in (1, 2, 4):
        population = Population(quantizer(STAIRCASE, bits), teacher())
        _, point = critical_points(population, norm)
        assert point.spurious
        assert point.loss > 0.1
        for name in ONE_SIDED:
            assert population.coarse_gradient(point.v, point.w, build_estimator(name)).norm() < 1e-12
        assert population.coarse_gradient(point.v, point.w, build_estimator("identity")).norm() > 0.03


@pytest.mark.parametrize(("spec", "bits"), STAIRCASES)
def test_at_the_global_minimum_all_vanish(spec: str, bits: int) -> None:
    target = teacher()
    population = Population(quantizer(spec, bits), target)
    assert abs(float(population.loss(target.v, target.w))) < 1e-14
    assert population.gradients(target.v, target.w)[0].norm() < 1e-14
    for name in ("identity", "clipped"):
        rule = build_estimator(name)
        assert population.coarse_gradient(target.v, target.w, rule).norm() < 1e-12
        assert population.coarse_gradient(target.v, target.w + 0.1, rule).norm() > 1e-3


def test_the_spurious_minimum_of_one_bit_is_the_closed_form() -> None:
    target = teacher()
    best, point = critical_points(binary(target))
    assert_close(point.v, binary_opposite(target), "closed form")
    assert_close(point.w, -target.w / target.w.norm(), "closed form")
    assert (best.loss, best.local_minimum, best.spurious) == (0.0, True, False)
    assert torch.equal(best.v, target.v)


@pytest.mark.parametrize(
    ("spec", "bits", "total", "norm"),
    [(STAIRCASE, 1, 1.1, None), (STAIRCASE, 1, 1.9, None), (STAIRCASE, 2, 1.1, 0.5), ("unsigned", 2, 1.1, 0.8)],
)
def test_local_minima_are_told_from_saddles(spec: str, bits: int, total: float, norm: float | None) -> None:
    """The loss at 200 weights nearby, of the same norm: never below that of a local minimum, but of a saddle."""
    population = Population(quantizer(spec, bits), teacher(total=total))
    _, point = critical_points(population, norm)
    w = point.w + 1e-2 * point.w.norm() * noise(200, 3, seed=5, dtype=F64)
    w = w / w.norm(dim=-1, keepdim=True) * point.w.norm()
    v = point.v + 1e-3 * noise(200, 4, seed=6, dtype=F64)
    change = population.loss(v, w) - point.loss
    assert point.local_minimum == bool((change >= -1e-12).all())
    if bits == 1:
        assert point.local_minimum == (total**2 < 2.5)


@pytest.mark.parametrize(("spec", "bits"), [("sign", 1), ("ternary", 2)])
def test_odd_staircases_have_no_spurious_minimum_but_a_second_global_one(spec: str, bits: int) -> None:
    target = teacher()
    population = Population(quantizer(spec, bits), target)
    _, point = critical_points(population)
    assert (point.local_minimum, point.spurious) == (True, False)
    assert_close(point.v, -target.v, "closed form")
    assert abs(point.loss) < 1e-12
    assert population.coarse_gradient(point.v, point.w, build_estimator("clipped")).norm() < 1e-12


def test_a_best_norm_opposite_to_the_teacher_is_found_where_there_is_one() -> None:
    target = teacher(norm=0.7)
    population = Population(quantizer("lsq", 2), target)
    _, point = critical_points(population)
    assert point.spurious
    for factor in (0.99, 1.01):
        assert population.loss(population.best_v(factor * point.w), factor * point.w) > point.loss


@pytest.mark.parametrize("rule", ["relu", "clipped"])
def test_coarse_gradients_of_the_class_go_uphill_where_v_is_right(rule: BinaryRule) -> None:
    """⟨E g, ∂f/∂w⟩ ≥ 0 for one bit: it is sin θ (relu) or q(θ) (clipped) times (vᵀv*)²/‖w‖, up to a constant."""
    target = teacher()
    v, w = students(target, [0.01, 0.5, 1.0, 2.0, 3.0, 3.13])
    inner = (binary_coarse_gradient(v, w, target, rule) * binary_gradients(v, w, target)[1]).sum(-1)
    assert (inner > 0).all()
    if rule == "relu":
        sine = torch.tensor([0.01, 0.5, 1.0, 2.0, 3.0, 3.13], dtype=F64).sin()
        assert_close(inner, sine * (v @ target.v).square() / (2 * math.pi) ** 1.5 / 2, "closed form")


@pytest.mark.parametrize(
    ("spec", "bits", "expected"),
    [
        ("sign", 1, [0.0]),
        (STAIRCASE, 2, [0.0, 1.0, 2.0]),
        ("unsigned", 2, [0.5, 1.5, 2.5]),
        ("lsq", 2, [-1.5, -0.5, 0.5]),
        ("ternary", 2, [-0.5, 0.5]),
    ],
)
def test_thresholds(spec: str, bits: int, expected: list[float]) -> None:
    assert thresholds(quantizer(spec, bits)).tolist() == expected


@pytest.mark.parametrize("bits", [4, 8])
def test_thresholds_of_many_bits(bits: int) -> None:
    assert thresholds(quantizer(STAIRCASE, bits)).tolist() == list(range(2**bits - 1))


def test_jumps_of_an_estimator() -> None:
    rule = build_estimator("reste(o=3)")
    found = jumps(proxy(rule, quantizer("sign", 1)), 4.0)
    torch.testing.assert_close(found, torch.tensor([-1.5, -0.1, 0.1, 1.5], dtype=F64), rtol=0, atol=1e-11)
    assert len(jumps(torch.sin, 4.0)) == 0


@pytest.mark.parametrize(("estimator", "stay"), [("relu", 6), ("log-tailed", 6), ("identity", 0)])
def test_descent_from_near_the_spurious_minimum(estimator: str, stay: int) -> None:
    """The estimators of the class stay at the local minimum, the identity leaves it."""
    population = binary(teacher())
    _, point = critical_points(population)
    v, w = point.v + 0.02 * noise(6, 4, seed=7, dtype=F64), point.w + 0.05 * noise(6, 3, seed=8, dtype=F64)
    run = descend_population(population, build_estimator(estimator), v, w, rate=0.5, steps=100, tolerance=0.02)
    assert run.loss.shape == (101, 6)
    assert int(run.at_spurious.sum()) == stay


def test_descent_reaches_the_global_minimum() -> None:
    target = teacher()
    v, w = students(target, [0.3, 1.0, 1.5])
    population = binary(target)
    run = descend_population(population, build_estimator("relu"), target.v + 0.1 * v, w, 0.5, steps=150)
    assert run.at_global.all()
    assert not run.at_spurious.any()
    assert (run.loss[-1] < 1e-3 * run.loss[0]).all()
    assert_close(run.loss[-1], population.loss(run.v, run.w), "closed form")
    assert_close(run.coarse, population.coarse_gradient(run.v, run.w, build_estimator("relu")), "closed form")


@pytest.mark.parametrize(
    ("estimator", "spec", "message"),
    [
        ("ewgs", "unsigned", "'ewgs' is not linear in the gradient: .* use sample_gradients"),
        ("lne", "unsigned", "'lne' does not act on activations"),
        ("relu", "lsq", "defined for staircases that rise from 0"),
        ("approxsign", "lsq", "defined for the sign quantizer only"),
    ],
)
def test_estimators_that_have_no_expected_coarse_gradient(estimator: str, spec: str, message: str) -> None:
    target = teacher()
    with pytest.raises(ConfigError, match=message):
        Population(quantizer(spec, 2), target).coarse_gradient(target.v, target.w, build_estimator(estimator))


def test_impossible_inputs_are_refused() -> None:
    target = teacher()
    population = Population(quantizer(STAIRCASE, 2), target)
    with pytest.raises(ConfigError, match="w is zero"):
        population.loss(target.v, torch.zeros(3))
    with pytest.raises(ConfigError, match=r"w has shape \(4,\), expected \(..., 3\)"):
        binary_loss(target.v, torch.ones(4), target)
    with pytest.raises(ConfigError, match=r"v has shape \(3,\), expected \(..., 4\)"):
        binary_gradients(torch.ones(3), target.w, target)
    with pytest.raises(ConfigError, match="rule 'ewgs' has no closed form"):
        binary_coarse_gradient(target.v, target.w, target, "ewgs")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the teacher's filter w is zero"):
        Teacher(torch.ones(2), torch.zeros(2))
    with pytest.raises(ConfigError, match="the teacher's v has shape"):
        Teacher(torch.ones(2, 2), torch.ones(2))
    with pytest.raises(ConfigError, match="not finite"):
        Teacher(torch.ones(2), torch.tensor([1.0, math.nan]))
    with pytest.raises(ConfigError, match="give the norm to look at"):
        critical_points(population)
    with pytest.raises(ConfigError, match=r"norm=0\.0 of the filter"):
        critical_points(population, 0.0)
    with pytest.raises(ConfigError, match=r"norm=0\.01 is so small"):
        critical_points(Population(quantizer("lsq", 2), target), 0.01)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ConfigError, match="samples=1"):
        sample_gradients(target.v, target.w, target, population.quantizer, build_estimator("relu"), 1, generator)


def test_single_precision_weights_are_taken() -> None:
    target = teacher()
    v, w = students(target, [0.7])
    population = binary(Teacher(target.v.float(), target.w.float()))
    assert population.loss(v.float(), w.float()).dtype == F64
    torch.testing.assert_close(population.loss(v.float(), w.float()), binary_loss(v, w, target), rtol=1e-5, atol=1e-6)
