"""The checker's verdicts on the registered estimators, computed beforehand so that `convert` need not run it.

`verdicts.json` is what `python -m benchmarks.check_table` wrote; a test runs parts of it again.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from lowbit.estimators import ESTIMATORS, AbstractEstimator
from lowbit.quantizers import QUANTIZERS, AbstractQuantizer
from lowbit.theory.admissibility import admissible

TABLE = Path(__file__).with_name("verdicts.json")
WIDTHS = (1, 2, 4, 8)
"""The bit widths in the table; one between them is looked up under the next larger one."""


@functools.cache
def verdict_table() -> dict[str, dict[str, Any]]:
    """Every verdict, by `key`."""
    table: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))["verdicts"]
    return table


def key(estimator: str, quantizer: str, bits: int) -> str:
    """The name of a pair in the table, for example `"relu|staircase|4"`."""
    return f"{estimator}|{quantizer}|{min(width for width in WIDTHS if width >= bits)}"


def objections(estimator: AbstractEstimator, quantizer: AbstractQuantizer) -> tuple[str, ...]:
    """The checker's reasons if it calls the pair unsafe, else nothing.

    A registered estimator with its default options is looked up. For any other only what takes milliseconds is asked:
    whether it is in the admissible class on the first step of the staircase, and whether its coarse gradient vanishes
    at a known minimum (`lowbit.theory.safety.check_safety`, questions 1 and 3). An estimator that is not elementwise,
    or that trains on relaxed values, is not judged.
    """
    name = ESTIMATORS.name_of(type(estimator), default="")
    known = verdict_table().get(key(name, QUANTIZERS.name_of(type(quantizer), default=""), quantizer.grid.bits))
    if known is not None and estimator == type(estimator)():
        return tuple(known["objections"]) if known["verdict"] == "unsafe" else ()
    if not estimator.elementwise or type(estimator).relax is not AbstractEstimator.relax:
        return ()
    from lowbit.theory.safety import at_known_minimum

    known_class = admissible(estimator, quantizer)
    if known_class.applies and not known_class.safe_up_to >= 1:
        return tuple(violation.text for violation in known_class.violations)
    found = at_known_minimum(estimator, quantizer)
    return () if found.vanishes else (found.text,)
