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

    A registered estimator with its default options is looked up. For any other only the third question of
    `lowbit.theory.safety.check_safety` is asked, whether its coarse gradient vanishes at a known minimum, which takes
    milliseconds; an estimator that is not elementwise is not judged.
    """
    name = ESTIMATORS.name_of(type(estimator), default="")
    known = verdict_table().get(key(name, QUANTIZERS.name_of(type(quantizer), default=""), quantizer.grid.bits))
    if known is not None and estimator == type(estimator)():
        return tuple(known["objections"]) if known["verdict"] == "unsafe" else ()
    if not estimator.elementwise:
        return ()
    from lowbit.theory.safety import at_known_minimum

    found = at_known_minimum(estimator, quantizer)
    return () if found.vanishes else (found.text,)
