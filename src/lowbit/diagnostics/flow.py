"""The experiment behind `lowbit flow`: how fast does a perturbed flat metric become flat again?

[chen2024ricci], Theorem 16 and Section 4.4, says: exponentially under the Ricci–DeTurck flow, not as a power of time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowbit._errors import ConfigError, LowbitError
from lowbit._folders import new_folder
from lowbit.diagnostics.flow_plots import plot_curvature, plot_decay
from lowbit.geometry.flow import Equation, FlowState, grid_curvature, random_metric, ricci_flow
from lowbit.geometry.spectral import PeriodicGrid

Array = NDArray[np.float64]

POINTS = {2: 32, 3: 16}
"""Points along each axis when none are given, by dimension."""

RECORDS = 60
"""The flow is looked at this many times, at equal distances, besides its first moment."""

SNAPSHOTS = (0, 5, 10, 20, 40)
"""The records of which the curvature is kept for the picture."""

SHORTEST = 3.0
"""The smallest product of flow time and linearised rate that is fitted."""

ROUNDING = 1e-12
"""Values below this share of the first one are rounding, and are not fitted."""


@dataclass(frozen=True)
class FlowExperiment:
    """A flat torus, a perturbation of its metric, and the flow to follow it along."""

    dim: int = 2
    """Dimension of the torus: 2 or 3."""
    perturbation: float = 0.05
    """Size of the perturbation as a share of the flat metric, both in the L² norm."""
    grid: int | None = None
    """Points along each axis; None takes 32 in two dimensions and 16 in three."""
    time: float | None = None
    """Flow time at which to end; None takes 6 divided by the linearised rate."""
    seed: int = 0
    """Seed of the perturbation."""
    equation: Equation = "deturck"
    """The flow: deturck, where the metric's deviation decays, or ricci, where the curvature does."""
    period: float = 2 * math.pi
    """Length of each side of the torus."""

    def __post_init__(self) -> None:
        if not self.perturbation > 0:
            raise ConfigError(f"perturbation is {self.perturbation}, expected a number above 0: nothing else decays")
        if self.time is not None and not (math.isfinite(self.time) and self.time > 0):
            raise ConfigError(f"time is {self.time}, expected a number above 0")


@dataclass(frozen=True)
class Decay:
    """An exponential and a power of time, both fitted to the logarithm of the same values.

    The exponential is `c e^{−rate·t}`, the power `c (1 + λt)^{−exponent}`, with λ the linearised rate: time counts in
    the flow's own unit, so that neither fit depends on the side of the torus.
    """

    rate: float
    exponent: float
    exponential_r2: float
    fractional_power_r2: float
    exponential_residual: float
    """Root mean square error of the logarithm."""
    fractional_power_residual: float
    window: tuple[float, float]
    """First and last time fitted: the second half of the flow, without what is lost in rounding."""
    exponential: Array
    """The fitted exponential at every recorded time."""
    fractional_power: Array
    """The fitted power at every recorded time."""


@dataclass(frozen=True)
class FlowReport:
    """What `lowbit flow` answers."""

    run: str
    equation: Equation
    dim: int
    grid: int
    period: float
    perturbation: float
    seed: int
    time: float
    quantity: Literal["deviation", "curvature"]
    """What was fitted: deturck: `‖g(t) − ḡ‖`; ricci: `‖Ric‖`, both in L² (see `run_flow`)."""
    fitted_rate: float
    linearised_rate: float
    """The smallest non-zero eigenvalue of −Δ on the flat torus, (2π/period)²."""
    limit_rate: float | None
    """The same eigenvalue for the limit metric, from which the linearised rate differs in the second order of the
    perturbation; None for ricci, whose limit is flat but not constant."""
    relative_error: float
    """|fitted_rate / linearised_rate − 1|."""
    exponential_r2: float
    fractional_power_r2: float
    exponent: float
    exponential_residual: float
    fractional_power_residual: float
    window: tuple[float, float]
    remaining_deviation: float
    """‖g − ḡ‖ at the end as a share of that at the start: near 0 for deturck; ricci keeps the change of coordinates."""
    steps: int
    rejected: int
    plots: list[str]

    def render(self) -> str:
        """The report as a table for people."""
        name = {"deviation": "‖g(t) − ḡ‖", "curvature": "‖Ric(g(t))‖"}[self.quantity]
        limit = "" if self.limit_rate is None else f" ({self.limit_rate:.6g} about the limit metric)"
        rows = {
            "flow": f"{self.equation}, {self.dim}-D torus of period {self.period:.6g}, {self.grid}^{self.dim} points",
            "steps": f"{self.steps} ({self.rejected} rejected) to time {self.time:.6g}",
            "fitted": f"{name} from time {self.window[0]:.4g} to {self.window[1]:.4g}",
            "exponential": f"rate {self.fitted_rate:.6g}, R² {self.exponential_r2:.10f}",
            "fractional power": f"exponent {self.exponent:.4g}, R² {self.fractional_power_r2:.6f}",
            "linearised rate": f"{self.linearised_rate:.6g}{limit}; relative error {self.relative_error:.2e}",
            "left at the end": f"{100 * self.remaining_deviation:.3g} % of the deviation from a constant metric",
            "written": ", ".join(self.plots),
        }
        return "\n".join(f"{title:<17} {text}" for title, text in rows.items())


@dataclass(frozen=True)
class _Series:
    """What is recorded along a flow; one entry per recorded time."""

    times: Array
    deviation: Array
    curvature: Array
    snapshots: list[tuple[float, Array]]
    limit: Tensor
    last: FlowState


def run_flow(experiment: FlowExperiment, out: Path | None = None) -> FlowReport:
    """Follow a randomly perturbed flat metric and compare its rate of decay with the linearised one.

    The deviation is `‖g(t) − ḡ‖` with ḡ the mean of the metric at the last moment: the constant part of a perturbation
    changes the shape of the flat torus and does not decay. Under the plain Ricci flow, a change of coordinates does not
    decay either, so there `‖Ric(g(t))‖` is fitted instead. Norms are taken with the flat volume.

    Args:
        experiment: what to do.
        out: folder for `decay.png`, `curvature.png` and `flow.json` (the report and the recorded values); None makes a
            new one under runs/.

    Raises:
        ConfigError: an option out of range, or a folder that is in use.
        DivergedError: the flow cannot be followed to the end.
    """
    points = POINTS.get(experiment.dim, 0) if experiment.grid is None else experiment.grid
    grid = PeriodicGrid(experiment.dim, points, experiment.period)
    end = 6 / grid.smallest_eigenvalue if experiment.time is None else experiment.time
    metric = random_metric(grid, experiment.perturbation, experiment.seed)
    quantity: Literal["deviation", "curvature"] = "deviation" if experiment.equation == "deturck" else "curvature"
    _check_time(end, grid.smallest_eigenvalue)
    with _folder_of_a_run(out, f"flow-{experiment.dim}d-{experiment.equation}") as folder:
        series = _follow(grid, metric, end, experiment.equation)
        decay = fit_decay(series.times, getattr(series, quantity), grid.smallest_eigenvalue)
    limit_rate = _limit_rate(grid, series.limit) if experiment.equation == "deturck" else None
    plots = [folder / "decay.png", folder / "curvature.png"]
    report = FlowReport(
        run=str(folder),
        equation=experiment.equation,
        dim=grid.dim,
        grid=grid.points,
        period=grid.period,
        perturbation=experiment.perturbation,
        seed=experiment.seed,
        time=end,
        quantity=quantity,
        fitted_rate=decay.rate,
        linearised_rate=grid.smallest_eigenvalue,
        limit_rate=limit_rate,
        relative_error=abs(decay.rate / grid.smallest_eigenvalue - 1),
        exponential_r2=decay.exponential_r2,
        fractional_power_r2=decay.fractional_power_r2,
        exponent=decay.exponent,
        exponential_residual=decay.exponential_residual,
        fractional_power_residual=decay.fractional_power_residual,
        window=decay.window,
        remaining_deviation=float(series.deviation[-1] / series.deviation[0]),
        steps=series.last.steps,
        rejected=series.last.rejected,
        plots=[str(path) for path in plots],
    )
    plot_decay(plots[0], report, series.times, {"deviation": series.deviation, "curvature": series.curvature}, decay)
    plot_curvature(plots[1], series.snapshots, grid.period, grid.dim)
    values = {name: getattr(series, name).tolist() for name in ("times", "deviation", "curvature")}
    (folder / "flow.json").write_text(json.dumps({**asdict(report), **values}, indent=1) + "\n", encoding="utf-8")
    return report


@contextmanager
def _folder_of_a_run(out: Path | None, name: str) -> Iterator[Path]:
    """The run's folder; a run that fails, having written nothing, leaves none that was not there before."""
    existed = out is not None and out.exists()
    folder = new_folder(out, name)
    try:
        yield folder
    except LowbitError:
        if not existed:
            folder.rmdir()
        raise


def _check_time(end: float, rate: float) -> None:
    """Raises: ConfigError where no fit could tell an exponential from a power."""
    if end * rate < SHORTEST:
        raise ConfigError(
            f"time is {end:.6g}, in which the slowest wave falls by a factor of {math.exp(end * rate):.3g} only: an "
            f"exponential looks like a power there; give {SHORTEST / rate:.6g} or more"
        )


def fit_decay(times: Array, values: Array, unit_rate: float) -> Decay:
    """Fit an exponential and a power of time to the second half of a decay, by least squares on the logarithm.

    Args:
        times: increasing.
        values: positive, at those times.
        unit_rate: λ of the power `c (1 + λt)^{−p}`.

    Raises:
        ConfigError: fewer than five values of the second half are above rounding.
    """
    late = (times >= times[-1] / 2) & (values > ROUNDING * values[0])
    if late.sum() < 5:
        raise ConfigError(f"the metric is flat to rounding long before time {times[-1]:.4g}; take a smaller time")
    exponential = _line(times, values, late)
    power = _line(np.log1p(unit_rate * times), values, late)
    return Decay(
        rate=-exponential[0],
        exponent=-power[0],
        exponential_r2=exponential[1],
        fractional_power_r2=power[1],
        exponential_residual=exponential[2],
        fractional_power_residual=power[2],
        window=(float(times[late][0]), float(times[late][-1])),
        exponential=exponential[3],
        fractional_power=power[3],
    )


def _line(x: Array, values: Array, late: NDArray[np.bool_]) -> tuple[float, float, float, Array]:
    """Slope, R², root mean square residual, and fitted values everywhere, of the logarithm of `values` against x."""
    logs = np.log(values[late])
    slope, intercept = np.polyfit(x[late], logs, 1)
    residual = logs - (slope * x[late] + intercept)
    r2 = 1 - float(residual @ residual) / float(np.sum((logs - logs.mean()) ** 2))
    return float(slope), r2, float(np.sqrt(np.mean(residual**2))), np.exp(slope * x + intercept)


def _follow(grid: PeriodicGrid, metric: Tensor, end: float, equation: Equation) -> _Series:
    times = [end * record / RECORDS for record in range(RECORDS + 1)]
    means, waves, curvature, snapshots = [], [], [], []
    for record, state in enumerate(ricci_flow(grid, metric, times, equation)):
        ricci, scalar = grid_curvature(grid, state.metric)
        means.append(grid.mean(state.metric))
        waves.append(grid.norm(state.metric - means[-1]))
        curvature.append(grid.norm(ricci))
        if record in SNAPSHOTS:
            middle = scalar if grid.dim == 2 else scalar[..., grid.points // 2]
            snapshots.append((state.time, middle.numpy()))
    limit = means[-1]
    shift = [math.sqrt(grid.period**grid.dim) * float((mean - limit).norm()) for mean in means]
    return _Series(np.array(times), np.hypot(waves, shift), np.array(curvature), snapshots, limit, state)


def _limit_rate(grid: PeriodicGrid, limit: Tensor) -> float:
    """The smallest non-zero eigenvalue of −Δ on the torus with a constant metric: the least `ḡ^{ij} k_i k_j`."""
    modes = torch.tensor(list(product((-1, 0, 1), repeat=grid.dim)), dtype=torch.float64)
    squares = (modes @ torch.linalg.inv(limit) * modes).sum(-1) * grid.smallest_eigenvalue
    return float(squares[modes.abs().sum(-1) > 0].min())
