"""What the three inverses of the LNE metric cost and how far they are off, against the number of weights n.

    python -m benchmarks.geometry [--json] [--sizes 8,64,...,2000000] [--rounds 30] [--save FILE]

For each n normal weights, and τ by both rules: the largest with ‖u‖² ≤ 0.9, and the largest at which g is diagonally
dominant by 0.1. Time is the median of one `solve` with the making of the metric, also as a multiple of one `tanh` of n
weights, which no method can do without and which feels caches and page faults alike; memory the peak of torch's
allocations, a network's weights included. The error is ‖x − g⁻¹v‖/‖g⁻¹v‖ against a dense solve in float64, and where a
dense matrix would be too large, against Sherman–Morrison in float64. Two v: normal noise, and u itself, the worst case
of the weak inverse.

The strong inverse up to its largest n: "strong" is a network trained on the very metric (`train_s`, once, 1,000 steps,
not in the time of a solve), "strong-unseen" one trained on other weights of the same distribution.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._measure import Step, environment, interleaved
from lowbit.geometry import STRONG_LIMIT, Inverse, LNEMetric, StrongInverse, TauRule

SIZES = (8, 16, 32, 64, 512, 4096, 36864, 250_000, 500_000, 1_000_000, 2_000_000)
RULES = {"‖u‖² = 0.9": TauRule("auto"), "dominant": TauRule("dominance")}
DENSE_LIMIT = 4096
# From here on no array of n weights lies in a core's own cache beside another.
LARGE = 250_000

Record = dict[str, Any]


def weights(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def truth(w: Tensor, tau: Tensor, v: Tensor) -> Tensor:
    """g⁻¹ v in float64, dense where that fits."""
    metric = LNEMetric(w.double(), tau.double())
    if w.numel() > DENSE_LIMIT:
        return metric.solve(v.double())
    return torch.linalg.solve(metric.as_matrix(), v.double())


def error(metric: LNEMetric, w: Tensor, tau: Tensor, v: Tensor) -> float:
    exact = truth(w, tau, v)
    return float((metric.solve(v).double() - exact).norm() / exact.norm())


def unseen_network(n: int, rule: TauRule) -> StrongInverse:
    """A network trained on blocks of normal weights, 64 new ones in each step."""
    network = StrongInverse(n)

    def sample(generator: torch.Generator) -> LNEMetric:
        w = torch.randn(64, n, generator=generator)
        return LNEMetric(w, rule(w))

    network.fit(sample)
    return network


def contenders(w: Tensor, tau: Tensor, rule: TauRule) -> Iterator[tuple[str, Inverse, StrongInverse | None, float]]:
    """Name, inverse, network and the seconds its training took."""
    yield "exact", "exact", None, 0.0
    yield "weak", "weak", None, 0.0
    if w.numel() <= STRONG_LIMIT:
        start = time.perf_counter()
        fitted = StrongInverse.fitted_to(LNEMetric(w, tau))
        between = time.perf_counter()
        unseen = unseen_network(w.numel(), rule)
        yield "strong", "strong", fitted, between - start
        yield "strong-unseen", "strong", unseen, time.perf_counter() - between


def solve(w: Tensor, tau: Tensor, inverse: Inverse, network: StrongInverse | None, v: Tensor) -> Tensor:
    """What is timed: the making of a metric, and a solve."""
    return LNEMetric(w, tau, inverse, network).solve(v)


def discarding(compute: Callable[[], Tensor]) -> Step:
    def step() -> None:
        compute()

    return step


def measure(n: int, rule_name: str, rounds: int) -> list[Record]:
    """One record per inverse at n weights and a rule for τ."""
    rule = RULES[rule_name]
    w, v = weights(n, seed=0), weights(n, seed=1)
    tau = rule(w)
    steps: dict[str, Step] = {"tanh": discarding(partial(torch.tanh, w))}
    records: list[Record] = []
    held: dict[str, float] = {}
    for name, inverse, network, seconds in contenders(w, tau, rule):
        metric = LNEMetric(w, tau, inverse, network)
        steps[name] = discarding(partial(solve, w, tau, inverse, network, v))
        held[name] = 0.0 if network is None else sum(p.nbytes for p in network.parameters()) / 2**20
        misfit = {} if network is None else {"misfit": float(network.misfit(metric)), "train_s": round(seconds, 2)}
        records.append(
            {
                "inverse": name,
                "n": n,
                "tau_rule": rule_name,
                "error_noise": error(metric, w, tau, v),
                "error_along_u": error(metric, w, tau, metric.u),
                **misfit,
            }
        )
    timings = interleaved(steps, rounds)
    for record in records:
        timing = timings[record["inverse"]]
        record["ms"] = timing.median
        record["times_tanh"] = timing.median / timings["tanh"].median
        record["peak_mib"] = timing.peak_mib + held[record["inverse"]]
    return records


def exponents(records: list[Record]) -> list[Record]:
    """The slope of log time and of log memory against log n at the large end, for the inverses that reach it."""
    found = []
    for inverse in ("exact", "weak"):
        for rule in RULES:
            chosen = [r for r in records if (r["inverse"], r["tau_rule"]) == (inverse, rule) and r["n"] >= LARGE]
            if len(chosen) >= 2:
                n = [math.log(r["n"]) for r in chosen]
                slopes = {
                    key: round(statistics.linear_regression(n, [math.log(r[key]) for r in chosen]).slope, 3)
                    for key in ("ms", "times_tanh", "peak_mib")
                }
                found.append({"inverse": inverse, "tau_rule": rule, "from_n": LARGE, **slopes})
    return found


def tables(records: list[Record], slopes: list[Record]) -> str:
    """Both as Markdown."""
    columns = ("time, ms", "in tanh(w)", "peak, MiB", "error, v noise", "error, v = u", "‖I − gG‖", "training, s")
    lines = [f"| n | inverse | τ | {' | '.join(columns)} |", "| ---: | --- | --- |" + " ---: |" * len(columns)]
    for r in records:
        numbers = (
            f"{r['ms']:.3g}",
            f"{r['times_tanh']:.1f}",
            f"{r['peak_mib']:.2g}",
            f"{r['error_noise']:.1e}",
            f"{r['error_along_u']:.1e}",
            f"{r['misfit']:.1e}" if "misfit" in r else "",
            f"{r['train_s']:.1f}" if "train_s" in r else "",
        )
        lines.append(f"| {r['n']:,} | {r['inverse']} | {r['tau_rule']} | {' | '.join(numbers)} |")
    lines += ["", f"| inverse | τ | exponent of time, n ≥ {LARGE:,} | of time in tanh(w) | of memory |"]
    lines += ["| --- | --- | ---: | ---: | ---: |"]
    lines += [
        f"| {s['inverse']} | {s['tau_rule']} | {s['ms']:.2f} | {s['times_tanh']:.2f} | {s['peak_mib']:.2f} |"
        for s in slopes
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object: records, exponents, environment")
    parser.add_argument("--sizes", type=lambda text: tuple(int(n) for n in text.split(",")), default=SIZES)
    parser.add_argument("--rounds", type=int, default=30, help="timed solves of each inverse at each n")
    parser.add_argument("--save", type=Path, default=None, help="also write that object to this file")
    arguments = parser.parse_args()
    records = [record for n in arguments.sizes for rule in RULES for record in measure(n, rule, arguments.rounds)]
    slopes = exponents(records)
    result = {"environment": environment(), "records": records, "exponents": slopes}
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(result, ensure_ascii=False) if arguments.json else tables(records, slopes))


if __name__ == "__main__":
    main()
