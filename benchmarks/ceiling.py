"""What one core of this processor can do at most: products per second of floats, bytes and bits, and bytes per second.

    python -m benchmarks.ceiling [--json] [--save FILE]

Compiles `csrc/dev/ceiling.cpp` with the system's C++ compiler (`$CXX`, else c++, g++ or clang++) and runs it for some
seconds. Every ceiling is the best of many short repeats taken in turn, so that a busy neighbour lowers none of them for
good; beside it stands the clock at that moment, which depends on the instructions in use.

`binary` is the usual way to multiply bits: exclusive or, then count. Of it (and of `binary_popcount`, where a vector
instruction counts) the higher is the limit of a kernel that treats every product by itself. lowbit's kernels share work
between rows and look up the carry of two products; `binary_shared` is the limit of that, the table being ready.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._measure import environment

SOURCE = Path(__file__).parent.parent / "csrc" / "dev" / "ceiling.cpp"
Ceilings = dict[str, Any]


class NoCeiling(Exception):
    """Why nothing could be measured."""


def ceilings() -> Ceilings:
    """`ghz`; for each kind of product `gmac_per_s`, `mac_per_cycle`, `ghz`, `how`; and `bandwidth` by level.

    Raises: NoCeiling without a compiler, or on a processor that the program does not know.
    """
    named = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name]
    compiler = next((found for found in map(shutil.which, named) if found), None)
    if compiler is None:
        raise NoCeiling("there is no C++ compiler here; install g++ or clang, or name one in the variable CXX")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "ceiling"
        built = subprocess.run(
            [compiler, "-std=c++17", "-O3", "-o", str(program), str(SOURCE)],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            raise NoCeiling(f"{compiler} cannot compile {SOURCE.name}:\n{built.stderr}")
        ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise NoCeiling(ran.stdout.strip() or f"the program ended with status {ran.returncode}")
    found: Ceilings = json.loads(ran.stdout)
    return found


def products(limits: Ceilings) -> dict[str, float]:
    """GMAC/s by kind of product, the lowest first."""
    found = {name: value["gmac_per_s"] for name, value in limits.items() if name not in ("ghz", "bandwidth")}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def show(limits: Ceilings) -> None:
    table = Table("product", "GMAC/s", "MAC per cycle", "GHz", "how", title=f"one thread; {limits['ghz']} GHz at rest")
    for name in products(limits):
        value = limits[name]
        table.add_row(name, *(str(value[key]) for key in ("gmac_per_s", "mac_per_cycle", "ghz", "how")))
    reads = Table("read from", "GB/s", "KiB read")
    for name, value in limits["bandwidth"].items():
        reads.add_row(name, str(value["gb_per_s"]), str(value["kib"]))
    console = Console()
    for one in (table, reads):
        Console(width=None if console.is_terminal else 120).print(one)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--save", type=Path, default=None, help="also write the ceilings and environment to this file")
    arguments = parser.parse_args()
    try:
        limits = ceilings()
    except NoCeiling as error:
        print(f"skipped: {error}", file=sys.stderr)
        return
    if arguments.save:
        arguments.save.write_text(json.dumps({"environment": environment(), "ceilings": limits}, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(limits))
    else:
        show(limits)


if __name__ == "__main__":
    main()
