"""The checker: verdicts that the papers' theorems and counter-example demand."""

from __future__ import annotations

import json

import pytest

from lowbit._errors import ConfigError, UnknownNameError
from lowbit.estimators import ESTIMATORS, build_estimator
from lowbit.quantizers import build_quantizer
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
    assert [(o.applies, o.runs, o.converged) for o in report.problems] == [(True, 4, 4), (True, 2, 2)]
    assert report.at_minimum.relative_norm < 1e-12
    assert report.at_minimum.left == 0


def test_the_identity_is_unsafe_for_each_of_the_reasons(identity: SafetyReport) -> None:
    assert identity.verdict == "unsafe"
    subspaces, gaussian = identity.problems
    assert (subspaces.converged, subspaces.runs) == (0, 4)
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
