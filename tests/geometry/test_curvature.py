from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowbit import ConfigError
from lowbit.geometry import LNEMetric
from lowbit.geometry.curvature import MetricFunction, christoffel, ricci_tensor, riemann, scalar_curvature
from straddling import noise
from tolerances import F64, assert_close


def at(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def sphere(x: Tensor, radius: float = 1.5) -> Tensor:
    """dθ₁² + sin²θ₁ dθ₂² + sin²θ₁ sin²θ₂ dθ₃² + …, times r²."""
    scales = torch.cat([torch.ones(1, dtype=x.dtype), torch.sin(x[:-1]).square()])
    return torch.diag(radius**2 * torch.cumprod(scales, 0))


def half_space(x: Tensor) -> Tensor:
    """Hyperbolic space, (dx² + … + dz²)/z² with z the last coordinate."""
    return torch.eye(len(x), dtype=x.dtype) / x[-1].square()


def disc(x: Tensor) -> Tensor:
    """The hyperbolic plane, 4 (dx² + dy²)/(1 − x² − y²)²."""
    return 4 * torch.eye(len(x), dtype=x.dtype) / (1 - x @ x).square()


def constant(x: Tensor) -> Tensor:
    return torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=x.dtype)


def polar(x: Tensor) -> Tensor:
    return torch.diag(torch.stack([torch.ones_like(x[0]), x[0].square()]))


def spherical(x: Tensor) -> Tensor:
    r2 = x[0].square()
    return torch.diag(torch.stack([torch.ones_like(x[0]), r2, r2 * torch.sin(x[1]).square()]))


def sheared(x: Tensor) -> Tensor:
    """The flat plane in the coordinates (x + sin y, y + x³/3): JᵀJ."""
    one = torch.ones_like(x[0])
    jacobian = torch.stack([torch.stack([one, torch.cos(x[1])]), torch.stack([x[0].square(), one])])
    return jacobian.T @ jacobian


def schwarzschild(x: Tensor, m: float = 0.7) -> Tensor:
    """The spatial slice dr²/(1 − 2m/r) + r² dθ² + r² sin²θ dφ²."""
    r2 = x[0].square()
    return torch.diag(torch.stack([1 / (1 - 2 * m / x[0]), r2, r2 * torch.sin(x[1]).square()]))


def ring(x: Tensor, large: float = 2.0, small: float = 0.5) -> Tensor:
    """A torus of revolution, angles (around the tube, around the axis)."""
    return torch.diag(torch.stack([torch.full_like(x[0], small**2), (large + small * torch.cos(x[0])).square()]))


def lne(tau: float) -> MetricFunction:
    return lambda x: LNEMetric(x, tau).as_matrix()


def hessian_of_log_cosh(tau: float) -> MetricFunction:
    return lambda x: torch.diag(1 - torch.tanh(tau * x).square())


def random_metric_function(n: int, seed: int) -> MetricFunction:
    """A smooth metric without symmetries: δ + A sin(Bx) and its transpose, small enough to be positive definite."""
    weights, amplitudes = noise(n, n, n, seed=seed, dtype=F64), noise(n, n, seed=seed + 1, dtype=F64)

    def metric(x: Tensor) -> Tensor:
        part = amplitudes * torch.sin(weights @ x)
        return torch.eye(n, dtype=F64) + 0.2 / amplitudes.norm() * (part + part.T)

    return metric


@pytest.mark.parametrize(
    ("metric", "point", "curvature"),
    [
        (sphere, at(0.7, 0.3), 1 / 1.5**2),
        (sphere, at(0.7, 1.9, 0.3), 1 / 1.5**2),
        (sphere, at(0.7, 1.9, 2.5, 0.3), 1 / 1.5**2),
        (half_space, at(0.4, 0.6), -1.0),
        (half_space, at(0.4, -1.3, 1.6), -1.0),
        (disc, at(0.3, -0.5), -1.0),
        (disc, at(0.3, -0.5, 0.2), -1.0),
        (constant, at(0.3, 0.2), 0.0),
        (polar, at(1.4, 0.2), 0.0),
        (spherical, at(1.4, 0.8, 0.2), 0.0),
        (sheared, at(0.4, 0.8), 0.0),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_spaces_of_constant_curvature(metric: MetricFunction, point: Tensor, curvature: float) -> None:
    n, g, delta = len(point), metric(point), torch.eye(len(point), dtype=F64)
    plane = torch.einsum("li,kj->lkij", delta, g)
    assert_close(riemann(metric, point), curvature * (plane - plane.mT), "closed form")
    assert_close(ricci_tensor(metric, point), curvature * (n - 1) * g, "closed form")
    assert_close(scalar_curvature(metric, point), at(curvature * n * (n - 1))[0], "closed form")


def test_christoffel_symbols_of_flat_and_curved_coordinates() -> None:
    r, theta = 1.4, at(0.7)
    expected = torch.zeros(2, 2, 2, dtype=F64)
    expected[0, 1, 1], expected[1, 0, 1], expected[1, 1, 0] = -r, 1 / r, 1 / r
    assert_close(christoffel(polar, at(r, 0.2)), expected, "closed form")
    expected = torch.zeros(2, 2, 2, dtype=F64)
    expected[0, 1, 1] = (-theta.sin() * theta.cos())[0]
    expected[1, 0, 1] = expected[1, 1, 0] = (1 / theta.tan())[0]
    assert_close(christoffel(sphere, torch.cat([theta, at(0.2)])), expected, "closed form")
    assert torch.equal(christoffel(constant, at(1.0, 2.0)), torch.zeros(2, 2, 2, dtype=F64))


def test_the_schwarzschild_slice_has_curvature_but_no_scalar_curvature() -> None:
    m, r, theta = 0.7, 3.1, at(0.9)
    mixed = torch.diag(at(-2.0, 1.0, 1.0)) * m / r**3
    point = torch.cat([at(r), theta, at(0.4)])
    assert_close(ricci_tensor(schwarzschild, point), schwarzschild(point) @ mixed, "closed form")
    assert_close(scalar_curvature(schwarzschild, point), at(0.0)[0], "closed form")


@pytest.mark.parametrize("angle", [0.0, 1.0, 1.6, 3.1])
def test_a_torus_of_revolution(angle: float) -> None:
    point = at(angle, 0.3)
    gauss = torch.cos(point[0]) / (0.5 * (2 + 0.5 * torch.cos(point[0])))
    assert_close(scalar_curvature(ring, point), 2 * gauss, "closed form")


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("tau", [0.05, 0.4])
def test_the_lne_manifold_is_curved_in_second_order_of_tau(n: int, tau: float) -> None:
    """δ − dF dF with F = τ⁻¹ Σ log cosh τξ is the metric of the graph of F in Minkowski space: Gauss's equation gives
    Riem from the second derivatives of F, and Ric = −(n − 1) τ² δ + O(τ⁴), that of hyperbolic space, not 0."""
    point = noise(n, seed=n, dtype=F64) / 2
    u = torch.tanh(tau * point)
    left = 1 - u @ u
    second = torch.diag(tau * (1 - u.square()))
    inverse = torch.eye(n, dtype=F64) + torch.outer(u, u) / left
    ricci = (second @ inverse @ second - (inverse @ second).trace() * second) / left
    assert_close(ricci_tensor(lne(tau), point), ricci, "closed form")
    assert_close(scalar_curvature(lne(tau), point), (inverse @ ricci).trace(), "closed form")
    at_zero = ricci_tensor(lne(tau), torch.zeros(n, dtype=F64))
    assert_close(at_zero, -(n - 1) * tau**2 * torch.eye(n, dtype=F64), "closed form")


def test_the_hessian_metric_is_flat_though_not_constant() -> None:
    point = at(0.5, -0.3, 0.8)
    metric = hessian_of_log_cosh(0.9)
    assert christoffel(metric, point).abs().max() > 0.1
    assert_close(riemann(metric, point), torch.zeros(3, 3, 3, 3, dtype=F64), "closed form")


@settings(max_examples=12)
@given(n=st.integers(2, 4), seed=st.integers(0, 1000))
def test_the_symmetries_of_the_curvature_tensor(n: int, seed: int) -> None:
    metric, point = random_metric_function(n, seed), noise(n, seed=seed + 2, dtype=F64)
    tensor = riemann(metric, point)
    lowered = torch.einsum("al,lkij->akij", metric(point), tensor)
    assert lowered.abs().max() > 1e-4
    assert_close(lowered, -lowered.mT, "closed form")
    assert_close(lowered, -lowered.transpose(0, 1), "closed form")
    assert_close(lowered, lowered.permute(2, 3, 0, 1), "closed form")
    bianchi = lowered + lowered.permute(0, 2, 3, 1) + lowered.permute(0, 3, 1, 2)
    assert_close(bianchi, torch.zeros_like(bianchi), "closed form")
    ricci = ricci_tensor(metric, point)
    assert_close(ricci, torch.einsum("ijik->jk", tensor), "closed form")
    assert_close(ricci, ricci.T, "closed form")
    gamma = christoffel(metric, point)
    assert_close(gamma, gamma.mT, "closed form")


@settings(max_examples=12)
@given(n=st.integers(2, 3), seed=st.integers(0, 1000))
def test_the_scalar_curvature_does_not_depend_on_coordinates(n: int, seed: int) -> None:
    metric, point = random_metric_function(n, seed), noise(n, seed=seed + 2, dtype=F64) / 3
    bend = noise(n, n, n, seed=seed + 3, dtype=F64) / 10

    def change(y: Tensor) -> Tensor:
        return y + torch.einsum("kij,i,j->k", bend, y, y)

    def pulled_back(y: Tensor) -> Tensor:
        jacobian = torch.func.jacrev(change)(y)
        return jacobian.T @ metric(change(y)) @ jacobian

    assert_close(scalar_curvature(pulled_back, point), scalar_curvature(metric, change(point)), "closed form")


def test_many_points_at_once_and_a_gradient() -> None:
    points = noise(5, 3, dtype=F64)
    metric = random_metric_function(3, 7)
    for function in (christoffel, riemann, ricci_tensor, scalar_curvature):
        one_by_one = torch.stack([function(metric, point) for point in points])
        assert_close(torch.vmap(lambda point, f=function: f(metric, point))(points), one_by_one, "closed form")
    point = at(1.0, 0.3)
    gradient = torch.func.grad(lambda x: scalar_curvature(ring, x))(point)
    expected = -2 * 2 * torch.sin(point[0]) / (0.5 * (2 + 0.5 * torch.cos(point[0])) ** 2)
    assert_close(gradient, torch.stack([expected, torch.zeros_like(expected)]), "closed form")


@pytest.mark.parametrize("function", [christoffel, riemann, ricci_tensor, scalar_curvature])
@pytest.mark.parametrize(
    ("metric", "point", "says"),
    [
        (lambda x: x, at(1.0, 2.0), r"returned shape \(2,\) at a point of 2 coordinates, expected \(2, 2\)"),
        (lambda x: x.new_tensor([[1, 2], [0, 1]]), at(1.0, 2.0), r"not symmetric at the point \[1.0, 2.0\].* by 2"),
        (polar, at(0.0, 2.0), r"singular matrix at the point \[0.0, 2.0\].*choose a point"),
        (lambda x: polar(x) / 0, at(1.0, 2.0), "NaN or infinite"),
        (lambda x: polar(x).float(), at(1.0, 2.0), "torch.float32 at a point in torch.float64"),
        (polar, at(1.0, 2.0)[None], r"float64 tensor of shape \(1, 2\), expected a floating-point vector.*vmap"),
        (polar, torch.tensor([1, 2]), "the point is a int64 tensor"),
    ],
)
def test_what_is_no_metric_is_named(
    function: Callable[..., Tensor], metric: MetricFunction, point: Tensor, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        function(metric, point)


GEOMSTATS = """
import json, sys
import geomstats.backend as gs
from geomstats.geometry.euclidean import Euclidean
from geomstats.geometry.riemannian_metric import RiemannianMetric

class LNE(RiemannianMetric):
    def metric_matrix(self, base_point=None):
        u = gs.tanh(0.4 * base_point)
        return gs.eye(3) - gs.einsum("...i,...j->...ij", u, u)

class Ring(RiemannianMetric):
    def metric_matrix(self, base_point=None):
        return gs.array([[0.25, 0.0], [0.0, (2.0 + 0.5 * gs.cos(base_point[0])) ** 2]])

answers = []
for metric, point in ((LNE, [0.5, -0.3, 0.8]), (Ring, [1.0, 0.3])):
    space = Euclidean(len(point), equip=False)
    space.equip_with_metric(metric)
    found, point = space.metric, gs.array(point)
    tensors = (found.christoffels(point), found.riemann_tensor(point), found.ricci_tensor(point))
    answers.append([*(gs.array(tensor).tolist() for tensor in tensors), float(found.scalar_curvature(point))])
print(json.dumps(answers))
"""


def test_geomstats_agrees() -> None:
    """geomstats with autograd: its pytorch backend loses a term of nested derivatives. It wants numpy below 2.4, so it
    may live in an environment of its own, whose interpreter `LOWBIT_GEOMSTATS_PYTHON` names."""
    python = os.environ.get("LOWBIT_GEOMSTATS_PYTHON", sys.executable)
    environment = {**os.environ, "GEOMSTATS_BACKEND": "autograd"}
    done = subprocess.run([python, "-c", GEOMSTATS], capture_output=True, text=True, env=environment, timeout=300)
    if "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr:
        pytest.skip(f"geomstats with autograd is not usable here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    cases = ((lne(0.4), at(0.5, -0.3, 0.8)), (ring, at(1.0, 0.3)))
    for (metric, point), theirs in zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True):
        gamma, tensor, ricci, scalar = (torch.tensor(value, dtype=F64) for value in theirs)
        assert_close(christoffel(metric, point), gamma, "closed form")
        assert_close(riemann(metric, point), tensor.permute(3, 0, 1, 2), "closed form")
        assert_close(ricci_tensor(metric, point), ricci, "closed form")
        assert_close(scalar_curvature(metric, point), scalar, "closed form")
