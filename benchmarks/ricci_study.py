"""Where does the Ricci-flow method act? Equal tuning for every method, then five seeds of each.

    python -m benchmarks.ricci_study run STAGE --data-path DIR --out FOLDER [--jobs 2] [--seeds 5] [--only NAME ...]
    python -m benchmarks.ricci_study report STAGE --out FOLDER [--json] [--save FILE] [--plot FILE.png]

Stages: `tune` (latent learning rates, one seed), `explore` (the method's own options, one seed), `compare` (the chosen
settings, all seeds). Every run is a `lowbit train` of its own, one thread each, in FOLDER/STAGE/NAME-sSEED; runs that
have finished are not repeated. ResNet-8 of half the width, CIFAR-10, 1-bit weights, float activations, 3 epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lowbit.diagnostics.plots import compare

BASE = shlex.split(
    "--data cifar10 --model resnet8(width=8) --weights 1 --activations 32 --optimizer sgd --batch-size 128 --lr 0.2 "
    "--weight-decay 0.0005 --epochs 3 --threads 1 --json"
)
FIGURES = ("flip_rate", "oscillation", "correction", "ricci_n", "pull", "gated", "mismatch_cosine")


def ricci(options: str) -> list[str]:
    """The method on top of the clipped estimator."""
    return ["--estimator", "clipped", "--method", f"ricci({options})"]


def at(rate: float, options: list[str]) -> list[str]:
    """With the latent weights' learning rate."""
    return [*options, "--latent-lr", str(rate)]


PLAIN = {
    "clipped": ["--estimator", "clipped"],
    "identity": ["--estimator", "identity"],
    "dorefa": ["--estimator", "dorefa"],
    "md-tanh-dual": ["--estimator", "md-tanh(form=dual)"],
    "md-tanh-gradient": ["--estimator", "md-tanh(form=gradient)"],
    "multifcgrad": ["--estimator", "identity", "--method", "metaquant(net=multifc)"],
    "fcgrad": ["--estimator", "identity", "--method", "metaquant(net=fc)"],
    "ricci-gradient": ricci("mode=gradient"),
    "ricci-identity": ["--estimator", "identity", "--method", "ricci"],
}
RATES = {
    "clipped": (2, 8, 32),
    "identity": (0.5, 2, 8, 32),
    "dorefa": (2, 8, 32),
    "md-tanh-dual": (0.3, 1, 3),
    "md-tanh-gradient": (0.5, 2),
    "multifcgrad": (2, 8, 32),
    "fcgrad": (1, 4, 16),
    "ricci-gradient": (2, 8, 32),
    "ricci-identity": (0.5, 2, 8, 32),
}
EXPLORE = {
    "layer": "mode=gradient",
    "channel": "mode=gradient,block=channel",
    "groups-of-16": "mode=gradient,block=16",
    "channel-dominance": "mode=gradient,block=channel,tau=dominance",
    "channel-weak": "mode=gradient,block=channel,inverse=weak",
    "hessian-tau-1": "mode=gradient,metric=hessian,tau=1",
    "hessian-tau-3": "mode=gradient,metric=hessian,tau=3",
    "alpha-0": "interval=4,alpha=0",
    "alpha-0.01": "interval=4,alpha=0.01",
    "alpha-0.1": "interval=4,alpha=0.1",
    "alpha-1": "interval=4,alpha=1",
    "channel-alpha-1": "interval=4,alpha=1,block=channel",
    "wide-shifts-alpha-0.1": "interval=4,alpha=0.1,shifts=(2,-1,2,-1)",
    "gate-1e-3": "interval=4,alpha=0,epsilon=1e-3",
}

COMPARE = {
    "clipped": at(8, PLAIN["clipped"]),
    "ricci-fast": at(8, ricci("mode=fast")),
    "ricci-fast-rate-32": at(32, ricci("mode=fast")),
    "identity": at(32, PLAIN["identity"]),
    "ricci-identity": at(32, PLAIN["ricci-identity"]),
    "dorefa": at(2, PLAIN["dorefa"]),
    "ricci-channel": at(8, ricci("mode=gradient,block=channel")),
    "ricci-faithful": at(8, ricci("mode=faithful")),
    "multifcgrad": at(32, PLAIN["multifcgrad"]),
    "md-tanh-dual": at(1, PLAIN["md-tanh-dual"]),
}

STAGES: dict[str, dict[str, list[str]]] = {
    "tune": {f"{name}-{rate}": at(rate, PLAIN[name]) for name, rates in RATES.items() for rate in rates},
    "explore": {name: at(8, ricci(options)) for name, options in EXPLORE.items()},
    "compare": COMPARE,
}


def train(name: str, options: list[str], seed: int, folder: Path, data_path: Path) -> str:
    """One run in a process of its own; what it printed goes beside its folder."""
    run = folder / f"{name}-s{seed}"
    result = folder / f"{run.name}.json"
    if result.exists():
        return f"{run.name}: done already"
    if run.exists():
        shutil.rmtree(run)  # it was interrupted
    command = [sys.executable, "-m", "lowbit", "train", *BASE, *options, "--seed", str(seed)]
    command += ["--data-path", str(data_path), "--out", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    (folder / f"{run.name}.log").write_text(outcome.stderr)
    if outcome.returncode:
        return f"{run.name}: failed, {outcome.stderr.strip().splitlines()[-1]}"
    result.write_text(outcome.stdout.strip().splitlines()[-1] + "\n")
    return f"{run.name}: {100 * json.loads(result.read_text())['test_accuracy']:.2f} %"


def run_stage(arguments: argparse.Namespace) -> None:
    folder = arguments.out / arguments.stage
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(arguments.seeds)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = [
            pool.submit(train, name, options, seed, folder, arguments.data_path)
            for seed in seeds
            for name, options in STAGES[arguments.stage].items()
            if name in (arguments.only or STAGES[arguments.stage])
        ]
        for job in waiting:
            print(job.result(), flush=True)


def report(arguments: argparse.Namespace) -> None:
    records = [summary(name, arguments.out / arguments.stage) for name in STAGES[arguments.stage]]
    records = [record for record in records if record["seeds"]]
    if arguments.save:
        arguments.save.write_text(json.dumps(records, indent=2) + "\n")
    if arguments.plot:
        groups = {r["name"]: _runs(r["name"], arguments.out / arguments.stage) for r in records}
        compare(groups, "test_accuracy", arguments.plot, last=1)
    if arguments.json:
        print(json.dumps(records))
        return
    columns = list(dict.fromkeys(key for record in records for key in record))
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for record in records:
        print("| " + " | ".join(str(record.get(column, "")) for column in columns) + " |")


def summary(name: str, folder: Path) -> dict[str, Any]:
    """Mean ± standard deviation over the seeds that have finished, accuracies in per cent."""
    last = [[json.loads(line) for line in _lines(run / "metrics.jsonl")] for run in _runs(name, folder)]
    record: dict[str, Any] = {"name": name, "seeds": len(last)}
    if not last:
        return record
    record["test"] = _spread([100 * h[-1]["test_accuracy"] for h in last])
    record["validation"] = _spread([100 * h[-1]["val_accuracy"] for h in last])
    record["best − last"] = _spread([100 * (max(e["test_accuracy"] for e in h) - h[-1]["test_accuracy"]) for h in last])
    record["loss"] = _spread([h[-1]["loss"] for h in last], 3)
    for figure in FIGURES:
        values = [statistics.mean(e[figure] for e in h) for h in last if all(e.get(figure) is not None for e in h)]
        if values:
            record[figure] = f"{statistics.mean(values):.3g}"
    return record


def _runs(name: str, folder: Path) -> list[Path]:
    return [folder / path.stem for path in sorted(folder.glob(f"{name}-s[0-9]*.json"))]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _spread(values: list[float], digits: int = 2) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    """Run a stage or report on it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="train what has not been trained yet")
    runner.add_argument("--data-path", type=Path, required=True)
    runner.add_argument("--jobs", type=int, default=2)
    runner.add_argument("--seeds", type=int, default=1)
    runner.add_argument("--only", nargs="+", help="these names of the stage")
    runner.set_defaults(action=run_stage)
    reporter = commands.add_parser("report", help="a table of what has been trained")
    reporter.add_argument("--json", action="store_true")
    reporter.add_argument("--save", type=Path, default=None)
    reporter.add_argument("--plot", type=Path, default=None)
    reporter.set_defaults(action=report)
    for command in (runner, reporter):
        command.add_argument("stage", choices=STAGES)
        command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
