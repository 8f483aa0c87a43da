"""The safety checker's verdict on every registered estimator that can act on activations.

    python -m benchmarks.check_table            # prints the table for docs/coarse.md
    python -m benchmarks.check_table --write    # and writes src/lowbit/theory/verdicts.json

Some minutes.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from lowbit._errors import ConfigError
from lowbit.estimators import ESTIMATORS, check_pair
from lowbit.quantizers import build_quantizer
from lowbit.theory.safety import check_safety
from lowbit.theory.verdicts import TABLE, WIDTHS, key

SEEDS = 10
QUANTIZERS = {"staircase": WIDTHS, "unsigned": WIDTHS, "sign": (1,), "lsq": (2, 4, 8)}


def table() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for quantizer, widths in QUANTIZERS.items():
        for bits in widths:
            staircase = build_quantizer(quantizer, bits)
            for name, cls in ESTIMATORS.items():
                try:
                    check_pair(cls(), staircase, "activations")
                except ConfigError:
                    continue
                report = check_safety(cls(), staircase, seeds=SEEDS).to_dict()
                del report["problems"], report["at_minimum"]
                found[key(name, quantizer, bits)] = report
                print(f"{name} | {quantizer} | {bits} | {report['verdict']}", flush=True)
    return found


def markdown(found: dict[str, dict[str, Any]]) -> str:
    columns = [(quantizer, bits) for quantizer, widths in QUANTIZERS.items() for bits in widths]
    lines = ["| | " + " | ".join(f"`{quantizer}` {bits}" for quantizer, bits in columns) + " |"]
    lines.append("| --- |" + " --- |" * len(columns))
    for name in ESTIMATORS.names():
        cells = [found.get(key(name, *column), {}).get("verdict", "–") for column in columns]
        if set(cells) != {"–"}:
            lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the verdicts that lowbit.convert looks up")
    options = parser.parse_args()
    found = table()
    if options.write:
        TABLE.write_text(json.dumps({"seeds": SEEDS, "verdicts": found}, indent=1) + "\n", encoding="utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
