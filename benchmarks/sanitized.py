"""Any program on kernels that watch themselves: the address and undefined-behaviour sanitizers.

    python -m benchmarks.sanitized benchmarks.fuzz_geometry --layers 1000
    python -m benchmarks.sanitized benchmarks.fuzz_artefact --mutations 1000
    python -m benchmarks.sanitized pytest tests/deploy/kernels

Builds the kernels with -DLOWBIT_SANITIZE=ON, in a temporary folder or in that of `--build`, and runs a module in a
process that has them in the place of the installed ones. Python and PyTorch are as they are, so the sanitizers'
libraries are loaded before anything else; memory that Python never gives back is no error. The first error found ends
the process, with its place in `csrc`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so")  # the last so that exceptions thrown in Python's modules pass


def build(folder: Path) -> Path:
    """The sanitized module, built there."""
    options = ("-DLOWBIT_SANITIZE=ON", f"-DPython_EXECUTABLE={sys.executable}")
    subprocess.run(["cmake", "-S", str(ROOT), "-B", str(folder), *options], check=True, stdout=subprocess.DEVNULL)
    start = time.perf_counter()
    subprocess.run(["cmake", "--build", str(folder)], check=True, stdout=subprocess.DEVNULL)
    print(f"built in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return next(folder.glob("_kernels*.so"))


def compiler(folder: Path) -> str:
    """The compiler that a folder was built with."""
    cache = (folder / "CMakeCache.txt").read_text().splitlines()
    return next(line.partition("=")[2] for line in cache if line.startswith("CMAKE_CXX_COMPILER:"))


def environment(folder: Path) -> dict[str, str]:
    """What the process needs to load a sanitized module."""
    found = []
    for name in LIBRARIES:
        command = [compiler(folder), f"-print-file-name={name}"]
        found.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    missing = [name for name in found if not Path(name).is_file()]
    if missing:
        sys.exit(f"the compiler has no {', '.join(missing)}: install g++ with its sanitizers")
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }


def run_on(kernels: str, module: str, arguments: list[str]) -> None:
    """Run a module as `python -m` would, with another file as `lowbit._kernels`."""
    spec = importlib.util.spec_from_file_location("lowbit._kernels", kernels)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    sys.modules["lowbit._kernels"] = loaded
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, help="a folder to build in and to keep")
    parser.add_argument("module", help="what to run, as in `python -m`")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.build or Path(temporary)
        kernels = build(folder)
        code = f"from benchmarks.sanitized import run_on; run_on({str(kernels)!r}, {args.module!r}, {args.arguments!r})"
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], env=environment(folder), check=False)
        print(f"ran for {time.perf_counter() - start:.0f} s", file=sys.stderr)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
