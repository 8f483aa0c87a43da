from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lowbit import ConfigError, LowbitError
from lowbit.diagnostics.flow import FlowExperiment, fit_decay, run_flow
from lowbit.geometry.flow import Equation

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("dim", "grid", "equation", "period"),
    [(2, 16, "deturck", 2 * math.pi), (2, 12, "ricci", 4.0), (3, 8, "deturck", 9.0)],
)
def test_the_decay_is_exponential_at_the_linearised_rate(
    tmp_path: Path, dim: int, grid: int, equation: Equation, period: float
) -> None:
    experiment = FlowExperiment(dim=dim, grid=grid, equation=equation, period=period, perturbation=0.03)
    report = run_flow(experiment, tmp_path / "out")
    assert report.linearised_rate == pytest.approx((2 * math.pi / period) ** 2)
    assert report.fitted_rate == pytest.approx(report.linearised_rate, rel=0.02)
    assert report.relative_error == pytest.approx(abs(report.fitted_rate / report.linearised_rate - 1))
    assert report.exponential_r2 > 0.99999
    assert 0.9 < report.fractional_power_r2 < 0.998
    assert report.fractional_power_residual > 50 * report.exponential_residual
    if equation == "deturck":
        assert report.quantity == "deviation"
        assert report.limit_rate == pytest.approx(report.linearised_rate, rel=0.01)
        assert report.remaining_deviation < 0.01
    else:
        assert (report.quantity, report.limit_rate) == ("curvature", None)
        assert report.remaining_deviation > 0.3
    assert report.plots == [str(tmp_path / "out" / name) for name in ("decay.png", "curvature.png")]
    assert all(Path(plot).read_bytes().startswith(PNG) for plot in report.plots)
    kept = json.loads((tmp_path / "out" / "flow.json").read_text())
    assert kept["fitted_rate"] == report.fitted_rate
    assert len(kept["times"]) == len(kept["deviation"]) == len(kept["curvature"]) == 61
    assert kept["deviation"][-1] == pytest.approx(report.remaining_deviation * kept["deviation"][0])
    assert f"{report.fitted_rate:.6g}" in report.render()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "grid", "equation", "closeness"),
    [
        (2, 32, "deturck", 1e-9),
        (2, 32, "ricci", 1e-6),
        (3, 16, "deturck", 1e-6),
        (3, 16, "ricci", 1e-2),  # what stays of the perturbation has waves that 8 points do not resolve
    ],
)
def test_half_the_spacing_gives_the_same_rate(
    tmp_path: Path, dim: int, grid: int, equation: Equation, closeness: float
) -> None:
    rates = [
        run_flow(FlowExperiment(dim=dim, grid=points, equation=equation), tmp_path / str(points)).fitted_rate
        for points in (grid // 2, grid)
    ]
    assert rates[0] == pytest.approx(rates[1], rel=closeness)
    assert rates[1] == pytest.approx(1, rel=0.02)


def test_each_fit_recognises_its_own() -> None:
    times = np.linspace(0, 6, 61)
    decay = fit_decay(times, 3 * np.exp(-0.7 * times), 0.7)
    assert decay.rate == pytest.approx(0.7)
    assert decay.exponential_r2 == pytest.approx(1)
    assert decay.exponential_residual < 1e-12 < 0.01 < decay.fractional_power_residual
    assert decay.window == (3, 6)
    np.testing.assert_allclose(decay.exponential, 3 * np.exp(-0.7 * times))
    decay = fit_decay(times, 3 * (1 + 0.7 * times) ** -2.5, 0.7)
    assert decay.exponent == pytest.approx(2.5)
    assert decay.fractional_power_residual < 1e-12 < 0.01 < decay.exponential_residual
    assert decay.fractional_power_r2 > decay.exponential_r2


def test_what_is_rounding_is_not_fitted() -> None:
    times = np.linspace(0, 48, 61)
    values = np.exp(-times) + 1e-16
    assert fit_decay(times, values, 1.0).rate == pytest.approx(1, rel=1e-3)
    assert fit_decay(times, values, 1.0).window[1] < 28
    with pytest.raises(ConfigError, match="flat to rounding long before time 480; take a smaller time"):
        fit_decay(10 * times, np.exp(-10 * times) + 1e-16, 1.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"perturbation": 0.0}, "perturbation is 0.0, expected a number above 0"),
        ({"perturbation": 3.0}, "it may be at most"),
        ({"time": -1.0}, "time is -1.0, expected a number above 0"),
        ({"time": 0.1}, r"falls by a factor of 1.11 only: .* give 3 or more"),
        ({"time": 1000.0}, "time"),
        ({"dim": 5}, "dim is 5, expected 2 or 3"),
        ({"grid": 4}, "grid is 4, expected at least 8"),
        ({"period": -1.0}, "period is -1.0"),
    ],
)
def test_an_experiment_that_cannot_be_leaves_no_folder(tmp_path: Path, options: dict[str, float], says: str) -> None:
    with pytest.raises(LowbitError, match=says):
        run_flow(FlowExperiment(**options), tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "decay.png").write_text("mine")
    experiment = FlowExperiment(grid=8, time=3.0)
    with pytest.raises(ConfigError, match="exists and is not empty; choose another --out"):
        run_flow(experiment, tmp_path / "out")
    with pytest.raises(ConfigError, match="cannot make the folder"):
        run_flow(experiment, tmp_path / "out" / "decay.png" / "within")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20250131-142501")
    runs = [run_flow(experiment).run for _ in range(2)]
    assert [Path(run).name for run in runs] == [
        "flow-2d-deturck-20250131-142501",
        "flow-2d-deturck-20250131-142501-2",
    ]
