"""The Ricci flow and the Ricci–DeTurck flow of metrics on a torus.

A metric is a field of symmetric matrices on a `PeriodicGrid`, shape (*grid, d, d). Space: Fourier modes with the 2/3
rule, float64. Time: the flow linearised about the flat metric δ is solved exactly in Fourier space, the rest by the
Runge–Kutta pair of orders 3 and 2 of [bogacki1989pair] in the variables that the linear flow leaves constant
([lawson1967generalized]); the step adapts to the pair's difference. The linear part, which bounds the step of an
explicit method by the square of the grid spacing, thereby bounds it no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal, get_args

import torch
from torch import Tensor

from lowbit._errors import ConfigError, DivergedError
from lowbit.geometry.curvature import connection, ricci_quadratic
from lowbit.geometry.spectral import PeriodicGrid

Equation = Literal["deturck", "ricci"]

HIGHEST_MODE = 2
"""`random_metric` perturbs with at most this many waves along each axis."""

TOLERANCE = 1e-6
"""Error of one step of `ricci_flow`, as a share of the metric's deviation from its mean."""

ROUNDING = 1e-6
"""Below this share of the metric, deviations no longer tighten the tolerance, which would reach rounding errors."""


@dataclass(frozen=True)
class FlowState:
    """The metric at one moment of a flow."""

    time: float
    metric: Tensor
    """Shape (*grid, d, d)."""
    steps: int
    """Steps taken so far."""
    rejected: int
    """Steps that were tried and repeated with a smaller length."""


@dataclass(frozen=True)
class _Geometry:
    """What the equations are made of, at every point of the grid."""

    metric: Tensor
    inverse: Tensor
    first: Tensor
    gamma: Tensor


class _NotAMetricError(Exception):
    """The field is not positive definite everywhere."""


def random_metric(grid: PeriodicGrid, perturbation: float, seed: int) -> Tensor:
    """A flat metric with a smooth random perturbation, `g = δ + p·h`, shape (*grid, d, d).

    h is symmetric, has mean 0 and is made of the modes with at most `HIGHEST_MODE` waves along each axis. Their
    amplitudes are normally distributed, smaller by e^{−m²/2} for m waves; `‖h‖ = ‖δ‖` in L². For a given seed h depends
    on the position as a share of the period, not on the number of points. Source: ours, not from a paper.

    Args:
        grid: the torus.
        perturbation: p ≥ 0.
        seed: of the amplitudes.

    Raises:
        ConfigError: p is negative, or so large that g is not positive definite everywhere; the message names the
            largest p that is.
    """
    if not perturbation >= 0:
        raise ConfigError(f"perturbation is {perturbation}, expected a number of at least 0")
    generator = torch.Generator().manual_seed(seed)
    phase = grid.coordinates * (2 * math.pi / grid.period)
    h = torch.zeros(*grid.shape, grid.dim, grid.dim, dtype=torch.float64)
    square = 0.0
    for mode in product(range(-HIGHEST_MODE, HIGHEST_MODE + 1), repeat=grid.dim):
        if mode <= (0,) * grid.dim:  # −k has the same cosine and sine as k
            continue
        angle = (phase @ torch.tensor(mode, dtype=torch.float64))[..., None, None]
        for wave in (torch.cos(angle), torch.sin(angle)):
            amplitude = torch.randn(grid.dim, grid.dim, generator=generator, dtype=torch.float64)
            amplitude = (amplitude + amplitude.T) * math.exp(-sum(waves * waves for waves in mode) / 2)
            h += amplitude * wave
            square += float(amplitude.square().sum()) / 2
    h *= math.sqrt(grid.dim / square)
    lowest = float(torch.linalg.eigvalsh(h).min())
    if perturbation * -lowest >= 1:
        largest = math.floor(1e4 / -lowest) / 1e4
        raise ConfigError(
            f"perturbation is {perturbation}: the metric would not be positive definite everywhere; with seed {seed} "
            f"it may be at most {largest:.4f}"
        )
    return torch.eye(grid.dim, dtype=torch.float64) + perturbation * h


def grid_curvature(grid: PeriodicGrid, metric: Tensor) -> tuple[Tensor, Tensor]:
    """The Ricci tensor, shape (*grid, d, d), and the scalar curvature, shape (*grid), of a metric on a grid.

    The same formulas as `ricci_tensor` and `scalar_curvature`, with spectral derivatives.

    Raises:
        ConfigError: the field is not a metric on this grid.
    """
    _check_metric(grid, metric)
    try:
        geometry = _geometry(grid, grid.spectrum(metric))
    except _NotAMetricError:
        raise ConfigError("the field is not positive definite everywhere, so it is no metric") from None
    ricci = grid.field(_ricci(grid, geometry))
    return ricci, torch.einsum("...ij,...ij->...", geometry.inverse, ricci)


def ricci_flow(
    grid: PeriodicGrid,
    metric: Tensor,
    times: Sequence[float],
    equation: Equation = "deturck",
    tolerance: float = TOLERANCE,
) -> Iterator[FlowState]:
    """Follow a metric along the Ricci flow or the Ricci–DeTurck flow.

    `"ricci"`: `∂g/∂t = −2 Ric(g)`, [chen2024ricci], Eq. 6. It does not see coordinates: what of g is a change of
    coordinates of a flat metric stays; curvature decays.

    `"deturck"`: `∂g/∂t = −2 Ric(g) + L_W g` with `W^k = g^{ij} (Γ^k_ij − Γ̄^k_ij)` and the flat background's Γ̄ = 0
    ([deturck1983deforming]). It is the Ricci flow in coordinates that move with it. Linearised about δ it is the heat
    equation `∂h/∂t = Δh` for every component.

    Args:
        grid: the torus.
        metric: g at the first moment, shape (*grid, d, d); of its modes, those of the 2/3 rule are followed.
        times: increasing moments at which to hand out the metric; the flow starts at the first one.
        equation: which flow.
        tolerance: error of one step, as a share of the metric's deviation from its mean.

    Yields:
        The metric at each moment.

    Raises:
        ConfigError: the field is not a metric on this grid, the moments do not increase, or another argument is out of
            range.
        DivergedError: no step is small enough, because the metric degenerates or the grid does not resolve it.
    """
    _check_metric(grid, metric)
    if equation not in get_args(Equation):
        raise ConfigError(f"equation is '{equation}', expected one of {', '.join(get_args(Equation))}")
    if not times or any(later <= earlier for earlier, later in pairwise(times)):
        raise ConfigError("the times of a flow have to increase")
    if not tolerance > 0:
        raise ConfigError(f"tolerance is {tolerance}, expected a number above 0")
    return _integrate(grid, metric, times, equation, tolerance)


def _integrate(
    grid: PeriodicGrid, metric: Tensor, times: Sequence[float], equation: Equation, tolerance: float
) -> Iterator[FlowState]:
    spectrum, time, taken, rejected = grid.spectrum(metric), times[0], 0, 0
    step = 0.01 / grid.smallest_eigenvalue
    shortest = 1e-9 / grid.smallest_eigenvalue
    try:
        rest = _rest(grid, spectrum, equation)
    except _NotAMetricError:
        raise ConfigError("the first metric is not positive definite everywhere") from None
    for moment in times:
        while time < moment:
            length = min(step, moment - time)
            try:
                new, new_rest, error = _step(grid, spectrum, rest, length, equation)
                ratio = error / (tolerance * _scale(grid, spectrum))
            except _NotAMetricError:
                ratio = math.inf
            factor = min(5.0, max(0.2, 0.9 * ratio ** (-1 / 3))) if ratio > 0 else 5.0
            if ratio <= 1:  # false for NaN, too
                # A step cut short by the next moment says nothing against longer ones.
                step = max(step, length * factor) if length < step else length * factor
                time = moment if length == moment - time else time + length
                spectrum, rest, taken = new, new_rest, taken + 1
                continue
            rejected += 1
            step = length * (factor if math.isfinite(ratio) else 0.2)
            if step < shortest:
                raise DivergedError(
                    f"the flow cannot be followed beyond time {time:.6g}: the metric degenerates, or "
                    f"{grid.points} points on each axis do not resolve it; take a smaller perturbation or more points"
                )
        yield FlowState(time, grid.field(spectrum), taken, rejected)


def _step(
    grid: PeriodicGrid, spectrum: Tensor, rest: Tensor, step: float, equation: Equation
) -> tuple[Tensor, Tensor, float]:
    """One step of the pair: the spectrum after it, what is not linear there, and the norm of the error."""

    def carried(value: Tensor, share: float) -> Tensor:
        return _linear_flow(grid, value, share * step, equation)

    # The nodes of the pair are 0, 1/2, 3/4 and 1; a slope found at node c is carried to node c' over (c' − c) steps.
    second = _rest(grid, carried(spectrum + step / 2 * rest, 1 / 2), equation)
    third = _rest(grid, carried(spectrum, 3 / 4) + carried(3 / 4 * step * second, 1 / 4), equation)
    new = (
        carried(spectrum + 2 / 9 * step * rest, 1)
        + carried(1 / 3 * step * second, 1 / 2)
        + carried(4 / 9 * step * third, 1 / 4)
    )
    last = _rest(grid, new, equation)
    error = (
        carried(-5 / 72 * step * rest, 1)
        + carried(1 / 12 * step * second, 1 / 2)
        + carried(1 / 9 * step * third, 1 / 4)
        - 1 / 8 * step * last
    )
    return new, last, grid.norm(grid.field(error))


def _scale(grid: PeriodicGrid, spectrum: Tensor) -> float:
    """What an error is measured by: the deviation from the mean; near 0, where rounding is all there is, the metric."""
    metric = grid.field(spectrum)
    return max(grid.norm(metric - grid.mean(metric)), ROUNDING * grid.norm(metric))


def _rest(grid: PeriodicGrid, spectrum: Tensor, equation: Equation) -> Tensor:
    """The spectrum of ∂g/∂t without its linear part."""
    geometry = _geometry(grid, spectrum)
    velocity = -2 * _ricci(grid, geometry)
    if equation == "deturck":
        velocity = velocity + _gauge(grid, geometry)
    velocity = (velocity + velocity.mT) / 2  # what rounding leaves would otherwise grow
    square = grid.waves.square().sum(-1)[..., None, None]
    return velocity + square * _decaying(grid, spectrum, equation)


def _linear_flow(grid: PeriodicGrid, spectrum: Tensor, time: float, equation: Equation) -> Tensor:
    """The flow linearised about δ: `h → h + (e^{−k²t} − 1) P h`, mode by mode."""
    square = grid.waves.square().sum(-1)[..., None, None]
    return spectrum + torch.expm1(-time * square) * _decaying(grid, spectrum, equation)


def _decaying(grid: PeriodicGrid, spectrum: Tensor, equation: Equation) -> Tensor:
    """`P h`, the part of each mode that decays as e^{−k²t}.

    DeTurck: all of it. Ricci: with `T = δ − k kᵀ/k²`, `P h = T h T + (k kᵀ/k²) tr(T h T)`, since the linearised −2 Ric
    is `−k² P h`; the rest, `k vᵀ + v kᵀ` but for that trace, is a change of coordinates. Source: ours, not from a
    paper.
    """
    if equation == "deturck":
        return spectrum
    square = grid.waves.square().sum(-1)[..., None, None]
    along = grid.waves.unsqueeze(-1) * grid.waves.unsqueeze(-2) / square.where(square > 0, torch.ones_like(square))
    across = (torch.eye(grid.dim, dtype=torch.float64) - along).to(spectrum.dtype)
    part = across @ spectrum @ across
    return part + along * part.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def _geometry(grid: PeriodicGrid, spectrum: Tensor) -> _Geometry:
    """Raises: _NotAMetricError."""
    metric, first = grid.field(spectrum), grid.field(grid.gradient(spectrum))
    factor, info = torch.linalg.cholesky_ex(metric)
    if info.any():
        raise _NotAMetricError
    inverse = torch.cholesky_inverse(factor)
    return _Geometry(metric, inverse, first, connection(inverse, first))


def _ricci(grid: PeriodicGrid, geometry: _Geometry) -> Tensor:
    """The spectrum of Ric, with the derivatives of Γ taken there (see `ricci_tensor` for the formula)."""
    gamma = grid.spectrum(geometry.gamma)
    divergence = torch.einsum("...i,...ijk->...jk", 1j * grid.waves, gamma)
    slope = grid.gradient(torch.einsum("...iik->...k", gamma))
    return divergence - (slope + slope.mT) / 2 + grid.spectrum(ricci_quadratic(geometry.gamma))


def _gauge(grid: PeriodicGrid, geometry: _Geometry) -> Tensor:
    """The spectrum of `(L_W g)_ij = W^k ∂_k g_ij + g_kj ∂_i W^k + g_ik ∂_j W^k` with `W^k = g^{ij} Γ^k_ij`."""
    w = grid.spectrum(torch.einsum("...ij,...kij->...k", geometry.inverse, geometry.gamma))
    stretched = grid.field(grid.gradient(w)) @ geometry.metric
    moved = torch.einsum("...k,...kij->...ij", grid.field(w), geometry.first)
    return grid.spectrum(moved + stretched + stretched.mT)


def _check_metric(grid: PeriodicGrid, metric: Tensor) -> None:
    expected = (*grid.shape, grid.dim, grid.dim)
    if metric.shape != expected or metric.dtype != torch.float64:
        raise ConfigError(
            f"the metric is a {metric.dtype} tensor of shape {tuple(metric.shape)}, expected torch.float64 of shape "
            f"{expected}"
        )
    if (metric - metric.mT).abs().max() > 1e-9 * metric.abs().max():
        raise ConfigError("the metric is not symmetric; give (g + g.mT) / 2 if only that part is meant")
