from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from lowbit import ConfigError
from lowbit._errors import DivergedError
from lowbit.geometry.curvature import MetricFunction, ricci_tensor, scalar_curvature
from lowbit.geometry.flow import Equation, grid_curvature, random_metric, ricci_flow
from lowbit.geometry.spectral import PeriodicGrid
from straddling import noise
from tolerances import F64, TOLERANCES, assert_close

EQUATIONS: tuple[Equation, ...] = ("deturck", "ricci")


def wavy(n: int) -> MetricFunction:
    """A metric without symmetries, of period 3 in every coordinate."""
    sines, cosines = noise(n, n, seed=n, dtype=F64), noise(n, n, seed=n + 9, dtype=F64)

    def metric(x: Tensor) -> Tensor:
        x = x * (2 * math.pi / 3)
        part = sines * torch.sin(x + x.roll(1)) + cosines * torch.cos(x)
        return torch.eye(n, dtype=F64) + 0.04 * (part + part.T)

    return metric


def end(grid: PeriodicGrid, metric: Tensor, time: float, equation: Equation, tolerance: float = 1e-6) -> Tensor:
    *_, last = ricci_flow(grid, metric, (0.0, time), equation, tolerance)
    return last.metric


def area(metric: Tensor) -> Tensor:
    """The mean of √det g: the area as a share of the flat one."""
    return torch.linalg.det(metric).sqrt().mean()


def total_square_curvature(grid: PeriodicGrid, metric: Tensor) -> Tensor:
    """∫ R² dV as a share of the flat volume; it does not depend on coordinates."""
    return (grid_curvature(grid, metric)[1].square() * torch.linalg.det(metric).sqrt()).mean()


@pytest.mark.parametrize(("dim", "points"), [(2, 32), (3, 32)])
def test_the_curvature_on_a_grid_is_that_at_its_points(dim: int, points: int) -> None:
    grid = PeriodicGrid(dim, points, period=3.0)
    metric = torch.vmap(wavy(dim))(grid.coordinates.reshape(-1, dim)).reshape(*grid.shape, dim, dim)
    ricci, scalar = grid_curvature(grid, metric)
    for index in ((3, 20, 9), (0, 31, 16)):
        place = index[:dim]
        assert_close(ricci[place], ricci_tensor(wavy(dim), grid.coordinates[place]), "spectral")
        assert_close(scalar[place], scalar_curvature(wavy(dim), grid.coordinates[place]), "spectral")
    assert scalar.abs().max() > 0.1


@pytest.mark.parametrize("dim", [2, 3])
def test_small_waves_decay_as_the_linearised_flow_says(dim: int) -> None:
    """Along x₁: under DeTurck every component decays as e^{−k²t}; under Ricci those across x₁ do, while those with an
    index along x₁, a change of coordinates but for what the first ones do to h₁₁, stay."""
    grid = PeriodicGrid(dim, 8, period=4.0)
    size, time = 1e-7, 0.3
    left = math.exp(-grid.smallest_eigenvalue * time)
    wave = torch.cos(grid.coordinates[..., 0] * (2 * math.pi / 4))[..., None, None]
    h = noise(dim, dim, seed=3, dtype=F64)
    h = h + h.T
    flat = torch.eye(dim, dtype=F64)
    metric = flat + size * wave * h
    assert_close((end(grid, metric, time, "deturck") - flat) / size, left * wave * h, "flow")
    expected = h.clone()
    expected[1:, 1:] *= left
    expected[0, 0] -= (1 - left) * h[1:, 1:].trace()
    assert_close((end(grid, metric, time, "ricci") - flat) / size, wave * expected, "flow")


@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_conformal_metric_follows_the_scalar_equation(equation: Equation) -> None:
    """In two dimensions g = e^{2φ} δ stays of that form, with ∂φ/∂t = e^{−2φ} Δφ, integrated here by NumPy and RK4.
    There W = 0, so that both flows agree."""
    grid, time, count = PeriodicGrid(2, 32), 0.5, 400
    x, y = grid.coordinates[..., 0].numpy(), grid.coordinates[..., 1].numpy()
    phi = 0.2 * np.sin(x) * np.cos(y) + 0.1 * np.cos(x + 2 * y)
    metric = torch.from_numpy(np.exp(2 * phi))[..., None, None] * torch.eye(2, dtype=F64)
    waves = np.fft.fftfreq(32, 1 / 32)
    square = waves[:, None] ** 2 + waves[None, :] ** 2

    def slope(phi: np.ndarray) -> np.ndarray:
        return np.exp(-2 * phi) * np.fft.ifft2(-square * np.fft.fft2(phi)).real

    step = time / count
    for _ in range(count):
        k1 = slope(phi)
        k2 = slope(phi + step / 2 * k1)
        k3 = slope(phi + step / 2 * k2)
        phi = phi + step / 6 * (k1 + 2 * k2 + 2 * k3 + slope(phi + step * k3))
    expected = torch.from_numpy(np.exp(2 * phi))[..., None, None] * torch.eye(2, dtype=F64)
    assert_close(end(grid, metric, time, equation), expected, "flow")


def test_both_flows_are_one_flow_in_different_coordinates() -> None:
    grid = PeriodicGrid(2, 16)
    metric = random_metric(grid, 0.1, seed=4)
    ricci, deturck = (end(grid, metric, 0.4, equation) for equation in ("ricci", "deturck"))
    assert (ricci - deturck).abs().max() > 0.01
    squares = [total_square_curvature(grid, g) for g in (metric, ricci, deturck)]
    assert squares[1] < 0.5 * squares[0]
    assert_close(squares[1], squares[2], "flow")
    # Gauss and Bonnet: the area changes by −∫R dA = 0 on a torus.
    assert_close(area(ricci), area(metric), "flow")
    assert_close(area(deturck), area(metric), "flow")


@pytest.mark.parametrize("equation", EQUATIONS)
def test_curvature_and_deviation_decrease(equation: Equation) -> None:
    grid = PeriodicGrid(3, 8)
    states = list(ricci_flow(grid, random_metric(grid, 0.03, seed=1), [0, 0.2, 0.4, 0.8], equation))
    curvature = [grid.norm(grid_curvature(grid, state.metric)[0]) for state in states]
    deviation = [grid.norm(state.metric - grid.mean(state.metric)) for state in states]
    assert all(later < 0.95 * earlier for earlier, later in pairwise(curvature))
    kept = deviation[-1] / deviation[0]
    assert kept < 0.5 if equation == "deturck" else kept > 0.5
    assert [state.time for state in states] == [0, 0.2, 0.4, 0.8]
    assert 0 < states[1].steps < states[2].steps < states[3].steps < 200


@pytest.mark.parametrize("equation", EQUATIONS)
def test_the_answer_depends_neither_on_the_spacing_nor_on_the_step(equation: Equation) -> None:
    coarse, fine = PeriodicGrid(2, 20), PeriodicGrid(2, 40)
    reference = end(fine, random_metric(fine, 0.05, seed=2), 0.3, equation, tolerance=1e-7)
    assert_close(end(coarse, random_metric(coarse, 0.05, seed=2), 0.3, equation), reference[::2, ::2], "flow")


def test_a_flat_metric_stays() -> None:
    grid = PeriodicGrid(2, 8)
    metric = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=F64).expand(8, 8, 2, 2)
    for equation in EQUATIONS:
        assert_close(end(grid, metric, 3.0, equation), metric, "spectral")


@pytest.mark.parametrize("dim", [2, 3])
def test_the_perturbation_has_the_size_asked_for_and_mean_0(dim: int) -> None:
    grid, fine = PeriodicGrid(dim, 8, period=3.0), PeriodicGrid(dim, 16, period=5.0)
    flat = torch.eye(dim, dtype=F64)
    h = random_metric(grid, 0.05, seed=5) - flat
    assert grid.norm(h) == pytest.approx(0.05 * grid.norm(flat.expand(*grid.shape, dim, dim)))
    assert_close(grid.mean(h), torch.zeros_like(flat), "spectral")
    assert torch.equal(h, h.mT)
    every_other = (slice(None, None, 2),) * dim
    assert_close(h, (random_metric(fine, 0.05, seed=5) - flat)[every_other], "spectral")
    assert not torch.equal(h, random_metric(grid, 0.05, seed=6) - flat)


def test_a_perturbation_that_is_too_large_is_answered_with_the_largest() -> None:
    grid = PeriodicGrid(2, 32)
    with pytest.raises(
        ConfigError, match=r"perturbation is 5: .*positive definite.* it may be at most 0\.\d{4}"
    ) as info:
        random_metric(grid, 5, seed=0)
    largest = float(str(info.value).rpartition(" ")[2])
    assert torch.linalg.eigvalsh(random_metric(grid, largest, seed=0)).min() > 0
    with pytest.raises(ConfigError):
        random_metric(grid, largest + 2e-4, seed=0)
    with pytest.raises(ConfigError, match="perturbation is -1, expected"):
        random_metric(grid, -1, seed=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((4, 16, 1.0), "dim is 4, expected 2 or 3"),
        ((2, 6, 1.0), "grid is 6, expected at least 8"),
        ((2, 16, 0.0), "period is 0.0, expected a length above 0"),
        ((2, 16, math.inf), "period is inf"),
    ],
)
def test_a_grid_that_cannot_be(options: tuple[int, int, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PeriodicGrid(*options)


def test_what_cannot_flow_is_named() -> None:
    grid = PeriodicGrid(2, 8)
    flat = torch.eye(2, dtype=F64).expand(8, 8, 2, 2)
    skew = flat + torch.tensor([[0.0, 0.1], [0.0, 0.0]], dtype=F64)
    with pytest.raises(ConfigError, match=r"shape \(8, 8, 2\), expected torch.float64 of shape \(8, 8, 2, 2\)"):
        grid_curvature(grid, flat[..., 0])
    with pytest.raises(ConfigError, match="float32 tensor"):
        ricci_flow(grid, flat.float(), (0, 1))
    with pytest.raises(ConfigError, match="not symmetric"):
        ricci_flow(grid, skew, (0, 1))
    with pytest.raises(ConfigError, match="not positive definite"):
        grid_curvature(grid, -flat)
    with pytest.raises(ConfigError, match="not positive definite"):
        list(ricci_flow(grid, -flat, (0, 1)))
    with pytest.raises(ConfigError, match="have to increase"):
        ricci_flow(grid, flat, (0, 1, 1))
    with pytest.raises(ConfigError, match="equation is 'heat', expected one of deturck, ricci"):
        ricci_flow(grid, flat, (0, 1), "heat")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tolerance is 0"):
        ricci_flow(grid, flat, (0, 1), tolerance=0)


def test_a_flow_that_cannot_be_followed_says_where_it_ends() -> None:
    grid = PeriodicGrid(2, 8)
    with pytest.raises(DivergedError, match=r"cannot be followed beyond time 0: .*smaller perturbation or more points"):
        list(ricci_flow(grid, random_metric(grid, 0.05, seed=0), (0, 1), tolerance=1e-40))


def test_the_table_of_tolerances_is_tight_enough_for_the_flow() -> None:
    """The perturbations followed here move the metric by more than a hundred times what `flow` allows."""
    grid = PeriodicGrid(2, 24)
    metric = random_metric(grid, 0.05, seed=2)
    for equation in EQUATIONS:
        moved = (end(grid, metric, 0.5, equation) - metric).abs().max()
        assert moved > 100 * max(TOLERANCES["flow", F64])
