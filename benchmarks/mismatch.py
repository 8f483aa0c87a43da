"""Whose gradient agrees with the loss? Estimators against differences of the loss over the discrete weights.

    python -m benchmarks.mismatch RUN [RUN ...] [--estimators SPEC ...] [--samples 100] [--batch-size 256] [--json]

Each run's last weights are put under every estimator in turn, so that the forward pass, the batch and the sampled
weights are the same and the backward pass alone differs. The figure is `lowbit.diagnostics.gradient_mismatch`: the
cosine over the sampled weights of a layer, nan where the estimator's gradient is 0 on all of them. `lne` is the metric
of the Ricci-flow method: `g⁻¹∂L`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks._measure import environment
from lowbit.diagnostics import gradient_mismatch
from lowbit.training.checkpoint import load_checkpoint, load_state
from lowbit.training.config import from_dict
from lowbit.training.task import build_low_bit_model, load_task

ESTIMATORS = ("identity", "clipped", "lne", "lne(block=channel)", "lne(block=16)", "lne(tau=dominance,block=channel)")


def measure(run: Path, estimators: list[str], samples: int, batch_size: int) -> list[dict[str, Any]]:
    """Cosines per layer, one record for each estimator."""
    saved = load_checkpoint(run / "last.ckpt")
    config = replace(from_dict(saved.config, str(run)), init=None, batch_size=batch_size)
    task = load_task(config)
    batch = next(task.batches(config, torch.device("cpu"), 0, 1).epoch(0))
    records = []
    for estimator in estimators:
        model, _ = build_low_bit_model(replace(config, estimator=estimator), task.data)
        load_state(model, saved.model, str(run))
        found = gradient_mismatch(model.train(), batch, cross_entropy, samples, torch.Generator().manual_seed(0))
        cosines = dict(zip(found.names, found.values["mismatch_cosine"].tolist(), strict=True))
        records.append({"run": run.name, "estimator": estimator, "cosines": cosines})
    return records


def table(records: list[dict[str, Any]]) -> str:
    """Means over the runs as Markdown: a column for each layer, then the mean over layers and its spread over runs."""
    layers = list(records[0]["cosines"])
    lines = [f"| estimator | {' | '.join(layers)} | mean | over runs |", "| --- |" + " ---: |" * (len(layers) + 2)]
    for estimator in dict.fromkeys(r["estimator"] for r in records):
        chosen = [r["cosines"] for r in records if r["estimator"] == estimator]
        means = [statistics.fmean(c.values()) for c in chosen]
        spread = statistics.stdev(means) if len(means) > 1 else math.nan
        cells = [f"{statistics.fmean(c[layer] for c in chosen):.3f}" for layer in layers]
        lines.append(f"| {estimator} | {' | '.join(cells)} | {statistics.fmean(means):.3f} | ± {spread:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that `lowbit train` left")
    parser.add_argument("--estimators", nargs="+", default=ESTIMATORS)
    parser.add_argument("--samples", type=int, default=100, help="weights per layer")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--json", action="store_true", help="print one JSON object: records, environment")
    parser.add_argument("--save", type=Path, default=None, help="also write that object to this file")
    arguments = parser.parse_args()
    samples, size = arguments.samples, arguments.batch_size
    records = [r for run in arguments.runs for r in measure(run, arguments.estimators, samples, size)]
    result = {"environment": environment(), "samples": samples, "batch": size, "records": records}
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if arguments.json else table(records))


if __name__ == "__main__":
    main()
