"""What a training step costs: ResNet-20, float against low-bit, and Brevitas beside it.

    python -m benchmarks.step_cost [--json] [--batch 128] [--rounds 15] [--threads N] [--precision fp32|bf16]
                                   [--only NAME ...] [--save FILE]

Every variant is built in this one process and timed in turn: medians, and medians of the ratios within a round. A
method whose steps differ (`ricci`, mode fast) is timed over a whole cycle, of which the mean counts. Memory is the
peak of torch's allocations within a step or cycle. Brevitas is left out, with a word, where it is not installed
(`pip install -e '.[bench]'`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import lowbit
from benchmarks import _brevitas_resnet
from benchmarks._measure import Step, Timing, environment, interleaved
from lowbit.methods import AbstractMethod, build_method
from lowbit.methods.ricci import Ricci
from lowbit.models import build_model

Build = Callable[[nn.Module], nn.Module]
BASE = "w1a32-clipped"


def one_bit(model: nn.Module, estimator: str = "clipped") -> nn.Module:
    """W1 A32."""
    return lowbit.convert(model, weights=1, estimator=estimator)


def variants() -> dict[str, tuple[Build, str]]:
    """Name → (how the float model becomes this variant, the training method)."""
    found: dict[str, tuple[Build, str]] = {
        "float": (lambda model: model, "plain"),
        BASE: (one_bit, "plain"),
        "w1a32-lne": (lambda model: one_bit(model, "lne"), "plain"),
        "w1a32-md-tanh": (lambda model: one_bit(model, "md-tanh"), "plain"),
        "w1a32-ricci-gradient": (one_bit, "ricci(mode=gradient)"),
        "w1a32-ricci-fast": (one_bit, "ricci"),
        "w1a32-ricci-faithful": (one_bit, "ricci(mode=faithful)"),
        "w1a32-multifcgrad": (one_bit, "metaquant(net=multifc)"),
        "w2a2-lsq": (lambda model: lowbit.convert(model, weights=2, activations=2), "plain"),
    }
    if importlib.util.find_spec("brevitas"):
        found["brevitas-w1a32"] = (lambda model: _brevitas_resnet.quantize(model, 1, 32), "plain")
        found["brevitas-w2a2"] = (lambda model: _brevitas_resnet.quantize(model, 2, 2), "plain")
    else:
        print("brevitas is not installed: its variants are left out (pip install -e '.[bench]')", file=sys.stderr)
    return found


def make_step(build: Build, method_spec: str, batch: int, precision: str, device: str) -> Step:
    """A cycle of training steps of a variant, ready to be called again and again."""
    model = build(build_model("resnet20", 10, 3, (32, 32), seed=0)).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 32, 32, generator=generator).to(device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), generator=generator).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    method = build_method(method_spec)
    model.train()

    def loss_fn(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs.float(), labels)

    def step() -> None:
        for _ in range(cycle(method)):
            with torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext():
                method.step(model, (images, labels), loss_fn, optimizer)

    return step


def cycle(method: AbstractMethod) -> int:
    """After how many steps a method's costs repeat."""
    return method.interval if isinstance(method, Ricci) else 1


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One record per variant: name, milliseconds and peak memory of a step, both also in ratio to float and to BASE."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = {n: v for n, v in variants().items() if n in ("float", BASE, *(arguments.only or variants()))}
    steps = {n: make_step(b, m, arguments.batch, arguments.precision, device) for n, (b, m) in chosen.items()}
    timings = interleaved(steps, arguments.rounds)
    lengths = {name: cycle(build_method(spec)) for name, (_, spec) in chosen.items()}
    plain, base = timings["float"], timings[BASE]

    def ratio(name: str, timing: Timing, reference: Timing) -> float:
        """The median over rounds of the ratio within one: the machine drifts from round to round."""
        pairs = zip(timing.milliseconds, reference.milliseconds, strict=True)
        return round(statistics.median(own / other for own, other in pairs) / lengths[name], 3)

    return [
        {
            "name": name,
            "ms": round(timing.median / lengths[name], 2),
            "ratio_to_float": ratio(name, timing, plain),
            "ratio_to_clipped": ratio(name, timing, base),
            "peak_mib": round(timing.peak_mib, 1),
            "memory_ratio_to_float": round(timing.peak_mib / plain.peak_mib, 3),
            "memory_ratio_to_clipped": round(timing.peak_mib / base.peak_mib, 3),
        }
        for name, timing in timings.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a JSON list, one record per variant")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--only", nargs="+", choices=variants(), help="these variants, beside float and the clipped one"
    )
    parser.add_argument("--save", type=Path, default=None, help="also write records and environment to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    records = measure(arguments)
    result = {
        "environment": environment(),
        "batch": arguments.batch,
        "precision": arguments.precision,
        "records": records,
    }
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(records))
        return
    table = Table(*records[0], title="one training step of ResNet-20")
    for record in records:
        table.add_row(*(str(value) for value in record.values()))
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)


if __name__ == "__main__":
    main()
