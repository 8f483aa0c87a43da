from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path

import pytest

from lowbit import ConfigError, LowbitError
from lowbit.diagnostics import coarse
from lowbit.diagnostics.coarse import ESTIMATORS, CoarseExperiment, run_coarse

PNG = b"\x89PNG\r\n\x1a\n"


def test_zero_loss_is_reported_run_by_run() -> None:
    report = run_coarse(CoarseExperiment(estimator="reverse-exponential", theta=90, seeds=2, classes=3))
    assert [run.seed for run in report.runs] == [0, 1]
    for run in report.runs:
        assert run.iterations_to_zero == run.iterations
        assert (run.final_loss, run.final_accuracy, run.coarse_gradient_norm, run.diverged) == (0, 1, 0, False)
        assert run.fresh_loss is not None
        assert 0 <= run.fresh_loss < 0.005
        assert run.cosine is not None
        assert run.cosine_start is not None
        assert 0.3 < run.cosine < run.cosine_start < 1
    zeros = [run.iterations_to_zero for run in report.runs if run.iterations_to_zero is not None]
    summary = report.summary
    assert (summary.reached_zero, summary.final_accuracy_min) == (2, 1)
    assert summary.iterations_to_zero_mean == pytest.approx(statistics.fmean(zeros))
    assert summary.iterations_to_zero_std == pytest.approx(statistics.stdev(zeros))
    assert f"zero loss in 2 of 2 runs after {summary.iterations_to_zero_mean:.0f} ±" in report.render()
    assert "the staircase saturates at 15" in report.render()
    assert json.loads(json.dumps(asdict(report)))["runs"][1]["seed"] == 1


def test_a_run_that_ends_early_never_reached_zero() -> None:
    report = run_coarse(CoarseExperiment(theta=15, seeds=1, iterations=2))
    (run,) = report.runs
    assert (run.iterations_to_zero, run.iterations, report.summary.reached_zero) == (None, 2, 0)
    assert run.final_loss is not None
    assert run.final_loss > 0
    assert report.summary.iterations_to_zero_mean is None
    assert " never " in report.render()


def test_a_run_that_diverges_is_reported() -> None:
    report = run_coarse(CoarseExperiment(seeds=1, eta=3e38, radius=(5.0, 9.0)))
    assert report.runs[0].diverged
    assert "diverged" in report.render()
    assert "NaN" not in json.dumps(asdict(report))


def test_the_pictures_and_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "ANGLES", (75.0, 90.0))
    experiment = CoarseExperiment(theta=60, seeds=2, iterations=15, estimator="clipped(c=2)", bits=2)
    report = run_coarse(experiment, True, tmp_path / "out")
    assert report.plots == [str(tmp_path / "out" / f"{name}.png") for name in ("curves", "gradients", "angles")]
    assert all(Path(plot).read_bytes().startswith(PNG) for plot in report.plots)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "curves.png", "gradients.png", "angles.png", "coarse.json",
    }  # fmt: skip
    kept = json.loads((tmp_path / "out" / "coarse.json").read_text())
    assert kept["summary"] == asdict(report.summary)
    assert list(kept["records"]) == ["clipped(c=2)", *ESTIMATORS]
    assert list(kept["records"]["relu"]) == ["60", "75", "90"]
    for run, record in zip(report.runs, kept["records"]["clipped(c=2)"]["60"], strict=True):
        assert record["seed"] == run.seed
        assert record["loss"][0] > 0.1
        assert record["iterations"][:4] == [0, 1, 2, 3]
        assert record["coarse_gradient_norm"][0] == pytest.approx(run.initial_coarse_gradient_norm)
    assert str(tmp_path / "out") in report.render()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"theta": 91.0}, "theta is 91.0, expected an angle above 0"),
        ({"seeds": 0}, "seeds is 0, expected at least 1 run"),
        ({"classes": 1}, "1 class was asked for"),
        ({"dims": 0}, "dims is 0, 0, expected at least 1"),
        ({"units": 1}, "units is 1 for 2 classes"),
        ({"eta": -1.0}, "eta is -1.0, expected a number above 0"),
        ({"radius": (3.0, 1.0)}, "radius is 3.0 to 1.0, expected"),
        ({"estimator": "no"}, "unknown estimator 'no'"),
        ({"estimator": "lne"}, "estimator 'lne'"),
        ({"quantizer": "ternary", "bits": 2}, "'relu' is defined for staircases that rise from 0"),
        ({"quantizer": "stairs"}, "unknown quantizer 'stairs'"),
    ],
)
def test_an_experiment_that_cannot_be_leaves_no_folder(tmp_path: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(LowbitError, match=says):
        run_coarse(CoarseExperiment(**options), True, tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "curves.png").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty; choose another --out"):
        run_coarse(CoarseExperiment(), True, tmp_path)
