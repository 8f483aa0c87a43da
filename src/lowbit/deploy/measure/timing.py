"""Interleaved timing of runtimes that keep caches and threads of their own, and the machine that they run on."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lowbit.deploy.files import container
from lowbit.deploy.kernels.loader import instruction_sets

PAUSE = 0.005
"""Seconds between two runtimes' turns: threads of the one before may still be spinning."""
BURST = 0.02
"""Seconds that a turn lasts at least."""


def bursts(
    runs: Mapping[str, Callable[[], Any]], rounds: int, threads: int, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Milliseconds of each run, one number per round.

    In a round everybody has a turn, A B C, A B C, …, so that a drifting machine hits all alike. A turn is one call that
    does not count (caches hold the others' data by then), and as many as fill `BURST`, of which the fastest counts: the
    others may have been interrupted, which takes milliseconds. A run of over half a second is called once. After
    `seconds` no new round begins, but five are made at least.

    On one thread it is this process's own time on the processor, which stands still while other programs have their
    turn; with several threads it is the clock on the wall.

    Args:
        runs: what to time, by name.
        rounds: turns of everybody.
        threads: that the runs use.
        seconds: see above.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    calls = {name: _calls(run, clock) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= min(5, rounds) and time.perf_counter() - start > seconds:
            break
        for name, run in runs.items():
            time.sleep(PAUSE)
            if calls[name]:
                run()
            found[name].append(min(_milliseconds(run, clock) for _ in range(max(calls[name], 1))))
    return found


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """The median over rounds of the ratio within one."""
    return round(statistics.median(a / b for a, b in zip(numerator, denominator, strict=True)), 3)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Within the block PyTorch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> dict[str, Any]:
    """Processor, versions, and the instruction sets that the kernels can use here, the fastest first."""
    return {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lowbit": container.library(),
        "kernels": instruction_sets(),
    }


def processor() -> str:
    """Its name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _calls(run: Callable[[], Any], clock: Callable[[], float]) -> int:
    """How many calls fill a turn; 0 for a run so slow that a warm call would be a waste."""
    run()
    took = min(_milliseconds(run, clock) for _ in range(2)) / 1e3
    return 0 if took > 0.5 else max(3 if took < 0.1 else 1, math.ceil(BURST / took))


def _milliseconds(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return (clock() - start) * 1e3
