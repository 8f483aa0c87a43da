"""Interleaved timing and peak memory of training steps."""

from __future__ import annotations

import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], None]
MEASURED = "measured step"


@dataclass
class Timing:
    """Milliseconds per step of one variant, and the peak of what torch allocated during a step."""

    milliseconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)


def interleaved(steps: Mapping[str, Step], rounds: int, warm_up: int = 2) -> dict[str, Timing]:
    """Time every step `rounds` times, A B C A B C …, so that a drifting machine hits all alike."""
    timings = {name: Timing() for name in steps}
    for name, step in steps.items():
        for _ in range(warm_up):
            step()
        timings[name].peak_mib = peak_mib(step)
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            _synchronize()
            timings[name].milliseconds.append((time.perf_counter() - start) * 1e3)
    return timings


def peak_mib(step: Step) -> float:
    """Highest sum of live torch allocations made within one step, in MiB, on top of what lived before it.

    On the CPU from the profiler's allocation events (scratch memory inside oneDNN and MKL is not seen); on CUDA from
    the allocator.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        _synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()  # what is let go in a step must have been made under the profiler's eyes to be seen going
        with torch.profiler.record_function(MEASURED):
            step()
    assert profile.profiler is not None
    events = profile.profiler.kineto_results.events()
    start = next(e.start_ns() for e in events if e.name() == MEASURED)
    live = before = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        if event.start_ns() < start:
            before = peak = live
        peak = max(peak, live)
    return (peak - before) / 2**20


def environment() -> dict[str, Any]:
    """Machine, versions and commit, to stand beside every result."""
    return {
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    asked = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"
