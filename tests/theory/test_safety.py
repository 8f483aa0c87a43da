"""The checker: verdicts that the papers' theorems and counter-example demand."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from lowbit._errors import ConfigError, UnknownNameError
from lowbit.estimators import ESTIMATORS, AbstractEstimator, build_estimator
from lowbit.quantizers import Grid, build_quantizer
from lowbit.theory import gaussian_check, safety, verdicts
from lowbit.theory.outcomes import confidence
from lowbit.theory.safety import SafetyReport, at_known_minimum, check_safety

FAMILY = ("relu", "log-tailed", "reverse-exponential")
TABLE = verdicts.verdict_table()


@pytest.fixture(scope="module")
def identity() -> SafetyReport:
    return check_safety("identity", "staircase(bits=4)", seeds=2)


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_is_safe(name: str) -> None:
    report = check_safety(name, "staircase(bits=2)", seeds=2)
    assert report.verdict == "safe"
    assert report.objections == ()
    assert [(o.applies, o.runs, o.converged) for o in report.problems] == [(True, 2, 2), (True, 2, 2)]
    assert report.at_minimum.relative_norm < 1e-12
    assert report.at_minimum.left == 0


def test_the_identity_is_unsafe_for_each_of_the_reasons(identity: SafetyReport) -> None:
    assert identity.verdict == "unsafe"
    subspaces, gaussian = identity.problems
    assert (subspaces.converged, subspaces.runs) == (0, 2)
    assert gaussian.always  # it does find the global minimum there, from random weights
    assert identity.at_minimum.relative_norm > 0.2
    assert identity.at_minimum.left == 2
    assert identity.at_minimum.rise > 1.5
    assert len(identity.objections) == 3
    assert identity.objections[0].startswith("not in the admissible class on [-7.5, 22.5]")


def test_clipped_is_safe_on_the_range_where_it_is_in_the_class() -> None:
    assert check_safety("clipped", "staircase(bits=4)", (-5.0, 15.0), seeds=2).verdict == "safe"
    beyond = check_safety("clipped", "staircase(bits=4)", seeds=2)
    assert beyond.verdict == "conditional"
    assert "in it as long as z stays below 15" in beyond.reasons[0]


def test_staircases_of_which_no_theorem_speaks() -> None:
    report = check_safety("approxsign", "sign", seeds=2)
    assert report.verdict == "conditional"
    assert not report.problems[0].applies
    assert report.problems[1].converged == 2
    assert report.at_minimum.vanishes
    assert "no theorem speaks of it" in report.reasons[0]


def test_an_annealed_estimator_counts_at_its_worst() -> None:
    report = check_safety("reste", "sign", seeds=2)
    assert report.verdict == "conditional"
    assert "o=" in report.estimator


@dataclass(frozen=True)
class Toy(AbstractEstimator):
    """An estimator of the user's own, of any bad kind."""

    kind: str = ""
    progress: float = 0.0
    linear_in_grad = True
    elementwise = True
    annealed = True
    binary_only = False
    roles = frozenset({"activations"})
    needs = frozenset({"z"})

    @classmethod
    def examples(cls) -> list[AbstractEstimator]:
        return [cls()]

    def at(self, progress: float) -> Toy:
        return replace(self, progress=progress)

    def vjp(self, z: Tensor, codes: Tensor, grad: Tensor, grid: Grid) -> Tensor:
        if self.kind == "ends as the identity":
            return grad * ((z > 0) | torch.tensor(self.progress == 1))
        slopes = {"dead": 0.0, "reversed": -1.0, "huge": 1e30, "nan": float("nan")}
        return grad * (z > 0) * slopes[self.kind]


class Relaxing(Toy):
    """Trains on soft values: its vjp is never called."""

    def relax(self, z: Tensor, codes: Tensor, grid: Grid) -> Tensor:
        return torch.sigmoid(z)


@pytest.mark.parametrize("kind", ["ends as the identity", "dead", "reversed", "huge", "nan"])
def test_what_is_bad_is_called_unsafe_and_nothing_breaks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "ITERATIONS", 300)
    monkeypatch.setattr(gaussian_check, "STEPS", 40)
    report = check_safety(Toy(kind), "staircase", seeds=2)
    assert report.verdict == "unsafe"
    json.loads(json.dumps(report.to_dict(), allow_nan=False))
    if kind == "huge":
        assert "runs diverged" in report.problems[0].text
    if kind in ("dead", "reversed", "nan"):
        assert verdicts.objections(Toy(kind), build_quantizer("staircase", 2))


def test_an_estimator_that_relaxes_is_not_judged() -> None:
    with pytest.raises(ConfigError, match="trains on relaxed values"):
        check_safety(Relaxing("dead"), "staircase", seeds=2)
    assert verdicts.objections(Relaxing("dead"), build_quantizer("staircase", 2)) == ()


@pytest.mark.parametrize("range", [(-1e20, 1e20), (-1e9, 1e9), (1e-13, 1e-12), (-5.0, -1.0), (-3.0, 0.0)])
def test_ranges_that_cannot_be_looked_at(range: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"range \(.*\) (has a length of|ends at or below 0)"):
        check_safety("relu", "staircase", range, seeds=2)


def test_an_estimator_that_is_not_linear_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian_check, "SAMPLES", 1 << 14)
    report = check_safety("ewgs", "staircase(bits=2)", seeds=2)
    assert report.verdict == "conditional"
    assert 0 < report.at_minimum.relative_norm < 0.1


def test_the_report_is_plain_values_and_words(identity: SafetyReport) -> None:
    plain = json.loads(json.dumps(identity.to_dict()))
    assert plain["verdict"] == "unsafe"
    assert plain["reasons"] == list(identity.reasons)
    assert (plain["delta"], plain["delta_bar"], plain["in_class"]) == (1.0, 1.0, False)
    assert identity.render().startswith("identity on staircase (4 bits): unsafe\n  - not in the admissible class")
    assert "curves" not in json.dumps(plain)
    assert len(identity.problems[0].curves) == 4


def test_the_minimum_alone_takes_no_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian_check.GaussianCheck, "descend", None)
    assert not at_known_minimum(build_estimator("identity"), build_quantizer("staircase", 2)).vanishes
    assert at_known_minimum(build_estimator("relu"), build_quantizer("unsigned", 3)).vanishes


def test_confidence_is_exact() -> None:
    low, high = confidence(10, 10)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 10)), 1.0)  # all of n: p^n = 2.5 %
    assert confidence(0, 20) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    low, high = confidence(3, 10)
    assert (low, high) == (pytest.approx(0.0667, abs=1e-4), pytest.approx(0.6525, abs=1e-4))


@pytest.mark.parametrize(
    ("estimator", "quantizer", "error", "message"),
    [
        ("rleu", "staircase", UnknownNameError, "unknown estimator 'rleu': did you mean 'relu'"),
        ("relu", "stairs", UnknownNameError, "unknown quantizer 'stairs'"),
        ("dorefa", "sign", ConfigError, "'dorefa' does not act on activations"),
        ("relu", "lsq", ConfigError, "'relu' is defined for staircases that rise from 0"),
        ("relu", "staircase(bits=9)", ConfigError, "takes 1 to 8 bits, 9 were asked for"),
        ("relu", "staircase(bits=two)", ConfigError, "bits is 'two', expected a whole number"),
    ],
)
def test_what_does_not_fit(estimator: str, quantizer: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_safety(estimator, quantizer)
    with pytest.raises(ConfigError, match="seeds is 1, expected at least 2"):
        check_safety("relu", seeds=1)


def test_the_table_speaks_of_what_there_is() -> None:
    assert len(TABLE) > 50
    for pair, known in TABLE.items():
        estimator, quantizer, bits = pair.split("|")
        assert estimator in ESTIMATORS.names()
        assert build_quantizer(quantizer, int(bits)).grid.bits == known["bits"]
        assert (known["verdict"] == "safe") == (known["objections"] == [])


@pytest.mark.parametrize("pair", ["relu|staircase|4", "identity|unsigned|2", "clipped|staircase|1", "clipped|lsq|2"])
def test_the_table_is_what_the_checker_finds(pair: str) -> None:
    estimator, quantizer, bits = pair.split("|")
    report = check_safety(estimator, f"{quantizer}(bits={bits})", seeds=3)
    known = TABLE[pair]
    assert report.verdict == known["verdict"]
    assert (report.admissibility.delta, report.admissibility.delta_bar) == (known["delta"], known["delta_bar"])
    assert bool(report.objections) == bool(known["objections"])


def test_objections_are_looked_up_or_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "check_safety", None)  # the whole check is never run
    staircase = build_quantizer("staircase", 3)  # between two widths of the table
    assert verdicts.objections(build_estimator("identity"), staircase) == tuple(
        TABLE["identity|staircase|4"]["objections"]
    )
    assert verdicts.objections(build_estimator("clipped"), staircase) == ()  # conditional is not unsafe
    assert verdicts.objections(build_estimator("clipped(c=0.9)"), staircase) == ()
    (text,) = verdicts.objections(build_estimator("ewgs(delta=1.0)"), staircase)
    assert "does not vanish at a known local minimum" in text
