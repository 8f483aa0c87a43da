"""Is it safe to train activations with this estimator through this staircase? The checker.

Three questions, each answered by a computation: (1) is the estimator in the admissible class on the range of the
pre-activations; (2) does coarse gradient descent with it converge on the two problems about which there are theorems;
(3) does its coarse gradient vanish at a known minimum, or is descent repelled from it?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from lowbit import _spec
from lowbit._errors import ConfigError
from lowbit.estimators import ESTIMATORS, AbstractEstimator, build_estimator, check_pair
from lowbit.quantizers import QUANTIZERS, AbstractQuantizer, build_quantizer
from lowbit.theory.admissibility import Admissibility, admissible
from lowbit.theory.descent import DescentOptions, descend
from lowbit.theory.gaussian_check import GaussianCheck
from lowbit.theory.outcomes import AtMinimum, Outcome, confidence, finite, plain, said
from lowbit.theory.subspaces import angled_subspaces
from lowbit.theory.two_layer import TwoLayerNetwork, second_layer

Verdict = Literal["safe", "conditional", "unsafe"]

ANGLES = (90.0, 60.0)
"""Between the two planes of the subspace problem: the theory's, and one beyond it."""
ITERATIONS = 4000
"""Steps of the subspace problem; estimators that converge need a few hundred."""
UNITS = 24


@dataclass(frozen=True, eq=False)
class SafetyReport:
    """What `check` answers."""

    estimator: str
    quantizer: str
    bits: int
    verdict: Verdict
    reasons: tuple[str, ...]
    """What was found, one sentence for each question."""
    objections: tuple[str, ...]
    """Those of them that speak against the pair."""
    admissibility: Admissibility
    problems: tuple[Outcome, ...]
    at_minimum: AtMinimum

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; numbers that are not finite are None."""
        found = self.admissibility
        values = {
            "estimator": self.estimator,
            "quantizer": self.quantizer,
            "bits": self.bits,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "objections": list(self.objections),
            "delta": found.delta,
            "delta_bar": found.delta_bar,
            "range": [found.low, found.high],
            "in_class": found.admissible if found.applies else None,
            "violations": [vars(violation) for violation in found.violations],
            "safe_up_to": found.safe_up_to,
            "problems": [plain(outcome) for outcome in self.problems],
            "at_minimum": {**plain(self.at_minimum), "vanishes": self.at_minimum.vanishes},
        }
        cleaned: dict[str, Any] = finite(values)
        return cleaned

    def render(self) -> str:
        """The report for people."""
        title = f"{self.estimator} on {self.quantizer} ({self.bits} bit{'s' * (self.bits > 1)}): {self.verdict}"
        return "\n".join([title, *(f"  - {reason}" for reason in self.reasons)])


def check_safety(
    estimator: str | AbstractEstimator,
    quantizer: str | AbstractQuantizer = "staircase",
    range: tuple[float, float] | None = None,
    seeds: int = 10,
) -> SafetyReport:
    """Judge an estimator on activations that pass through a quantizer's staircase.

    1. Class: `admissible(estimator, quantizer, range)`.
    2. Descent: (a) classes in two planes, at 90° and 60°, two-linear-layer network of 24 units, fresh points in each
       step; a run converges when the loss is exactly 0 on a sample of its own. It needs a staircase that rises from 0,
       and not in a single step at 0: an odd one cannot give a point and its mirror image, both of one class, the same
       answer, and a single step at 0 only in a limit. (b) One hidden layer with Gaussian inputs and a teacher; the
       activation is 1[z > 0] (`staircase` of 1 bit) for staircases that rise from 0, the sign for all others; a run
       converges when it ends at a known minimum.
    3. Minimum: at the Gaussian problem's point opposite to the teacher, for 1[z > 0] a local minimum of the population
       loss with loss above 0, the expected coarse gradient should vanish, and descent that starts beside it should
       stay. For the sign that point is a second global minimum, at which every estimator's coarse gradient is 0.

    Verdict: `unsafe` when (3) fails or fewer than half of the runs of a problem converge; `safe` when the estimator is
    in the class on the range, all runs converge and (3) holds; `conditional` in between, also where the class is not
    defined for the staircase.

    An estimator that is annealed is judged as it is at the start and at the end of training, and the worse verdict
    counts.

    Args:
        estimator: a spec such as `"relu"`, or an object.
        quantizer: a spec such as `"staircase(bits=4)"` (without bits: the quantizer's default), or an object.
        range: of the pre-activations (a, b), in step units; by default half the grid beyond each of its ends.
        seeds: runs for each angle, and starts of the Gaussian problem.

    Raises:
        UnknownNameError, ConfigError: a name, range or number of seeds that does not fit, a pair that is not defined.

    Source: the criteria are those of [long2021coarse] and [yin2019understanding] (Sec. 3 on rest points); the verdict
    is ours.
    """
    if seeds < 2:
        raise ConfigError(f"seeds is {seeds}, expected at least 2: one run says nothing about how often it converges")
    rule, staircase = build_estimator(estimator), _quantizer(quantizer)
    check_pair(rule, staircase, "activations")
    if not rule.annealed:
        return _Check(rule, staircase, range, seeds).report()
    ends = [_Check(rule.at(progress), staircase, range, seeds).report() for progress in (0.0, 1.0)]
    order = ("safe", "conditional", "unsafe")
    return max(ends, key=lambda report: order.index(report.verdict))


def at_known_minimum(estimator: AbstractEstimator, quantizer: AbstractQuantizer) -> AtMinimum:
    """Question (3) without the descents, in milliseconds. Raises: ConfigError for a pair that is not defined."""
    check_pair(estimator, quantizer, "activations")
    return GaussianCheck(estimator, quantizer, 0).at_minimum


def _quantizer(spec: str | AbstractQuantizer) -> AbstractQuantizer:
    if isinstance(spec, AbstractQuantizer):
        return spec
    name, options = _spec.parse(spec)
    cls = QUANTIZERS.get(name)
    bits = options.get("bits", cls.widths[0] if 2 not in cls.widths else 2)
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise ConfigError(f"quantizer '{spec}': bits is {bits!r}, expected a whole number")
    return build_quantizer(spec, bits)


class _Check:
    """One estimator, one staircase: the three questions."""

    def __init__(
        self,
        estimator: AbstractEstimator,
        quantizer: AbstractQuantizer,
        range: tuple[float, float] | None,
        seeds: int,
    ) -> None:
        self.estimator, self.quantizer, self.seeds = estimator, quantizer, seeds
        self.found = admissible(estimator, quantizer, range)
        self.gaussian = GaussianCheck(estimator, quantizer, seeds)

    def report(self) -> SafetyReport:
        problems = (self.subspaces(), self.gaussian.outcome())
        minimum = self.gaussian.at_minimum
        if not minimum.vanishes or not all(outcome.mostly for outcome in problems):
            verdict: Verdict = "unsafe"
        elif self.found.admissible and all(outcome.always for outcome in problems):
            verdict = "safe"
        else:
            verdict = "conditional"
        objections = [] if self.found.admissible else [self.class_text()]
        objections += [outcome.text for outcome in problems if not outcome.always]
        objections += [] if minimum.vanishes else [minimum.text]
        name = ESTIMATORS.name_of(type(self.estimator), default=type(self.estimator).__name__)
        options = ", ".join(f"{key}={value}" for key, value in vars(self.estimator).items())
        return SafetyReport(
            estimator=f"{name}({options})" if options else name,
            quantizer=QUANTIZERS.name_of(type(self.quantizer), default=type(self.quantizer).__name__),
            bits=self.quantizer.grid.bits,
            verdict=verdict,
            reasons=(self.class_text(), *(outcome.text for outcome in problems), minimum.text),
            objections=tuple(objections),
            admissibility=self.found,
            problems=problems,
            at_minimum=minimum,
        )

    def class_text(self) -> str:
        found = self.found
        where = f"[{found.low:g}, {found.high:g}] (step units)"
        if not found.applies:
            grid = self.quantizer.grid
            return (
                f"the admissible class is defined for staircases that rise from 0, this one has codes from {grid.low} "
                f"to {grid.high}: no theorem speaks of it; on its grid δ = {found.delta:.4g}, δ̄ = {found.delta_bar:.4g}"
            )
        if found.admissible:
            return f"in the admissible class on {where}: δ = {found.delta:.4g}, δ̄ = {found.delta_bar:.4g}"
        text = f"not in the admissible class on {where}: " + "; ".join(v.text for v in found.violations)
        conditions = {violation.condition for violation in found.violations}
        if conditions == {"lower bound"} and found.safe_up_to > 0:
            text += f"; in it as long as z stays below {found.safe_up_to:.4g}"
        return text

    def subspaces(self) -> Outcome:
        title = "subspace classification"
        grid = self.quantizer.grid
        at_zero = bool(self.quantizer.discretize(torch.full((1,), 1e-6)) > grid.low)
        if not grid.one_sided or (grid.count == 2 and at_zero):
            why = "of one step at 0" if grid.one_sided else "that does not rise from 0"
            text = f"{title}: not a problem for a staircase {why}, nothing was run"
            return Outcome(title, False, 0, 0, (0.0, 1.0), text)
        network = TwoLayerNetwork(second_layer(2, UNITS), self.quantizer, self.estimator)
        families = [angled_subspaces(angle) for angle in ANGLES]
        options = DescentOptions(iterations=ITERATIONS, checkpoints=())
        runs = descend(network, families, list(range(self.seeds)), options)
        # The runs of a seed at both angles share first weights and points: they count as one trial.
        zero = {seed: [r.iterations_to_zero for r in runs if r.seed == seed] for seed in range(self.seeds)}
        good = [seed for seed, steps in zero.items() if None not in steps]
        interval = confidence(len(good), self.seeds)
        angles = " and ".join(f"{angle:g}°" for angle in ANGLES)
        text = f"{title} at {angles}: {len(good)} of {self.seeds} seeds reached loss 0 at both, {said(interval)}"
        taken = sorted(run.iterations_to_zero for run in runs if run.iterations_to_zero is not None)
        if taken:
            text += f"; median {taken[len(taken) // 2]} iterations"
        rest = [run for run in runs if run.iterations_to_zero is None and not run.diverged]
        if rest:
            share = sum(run.accuracy[-1] for run in rest) / len(rest)
            text += f"; the other runs were right on {100 * share:.0f} % of the points after {ITERATIONS}"
        diverged = sum(run.diverged for run in runs)
        if diverged:
            text += f"; {diverged} runs diverged"
        curves = tuple((run.iterations, run.loss) for run in runs)
        return Outcome(title, True, self.seeds, len(good), interval, text, curves)
