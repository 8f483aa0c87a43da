"""Does a trained net compute the same everywhere? Layer by layer, over whole test sets of real images.

    python -m benchmarks.identical [--data DIR] [--sets mnist,cifar10] [--settings W1A1,...] [--images N]
                                   [--runtimes onnx,...] [--steps N] [--json] [--save FILE]

For each data set and number of bits a net is trained for 200 steps (LeNet-5 on MNIST, ResNet-20 on CIFAR-10),
exported and compiled. Then the codes that each low-bit layer reads are compared with those of `model.eval()`:

- `onnx`: the int8 form, on ONNX Runtime with its default options, in one thread;
- `qonnx`: the same net for FPGA tools, on qonnx's executor;
- `kernels`: `lowbit.compile`, layer by layer; its outputs are those of a call that nobody watches.

First and last layers have 8 bits. With float activations (W1A32) they are float and there are no codes; of such nets
the kernels compute the linear layers between them (ResNet-20 has none), PyTorch the rest. `codes` are those that were
compared, `differ` those that are others, `near ties` those of them that rounding explains: they lie behind a layer that
sums real numbers (in ResNet-20 the average pooling before the last layer), within rounding of a tie, so that the order
of the sum decides. `predictions` counts images whose largest output is elsewhere, `output` is the largest difference of
an output.

The exit status is 1 where anything differs that should not: a code that rounding does not explain, an output of a layer
of whole numbers, a prediction. The whole takes more than an hour of one core, and 4 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lowbit
from benchmarks._identical_nets import LAST, SETTINGS, SUBJECTS, USUAL, held_out, trained
from benchmarks._measure import environment
from lowbit.data import ImageData
from lowbit.deploy.kernels.loader import paths
from lowbit.deploy.proof.observe import Entry, Inputs, Trace, as_arguments
from lowbit.deploy.proof.report import Report
from lowbit.layers import is_integer, quant_layers

RUNTIMES = ("onnx", "qonnx", "kernels")


class OnFile:
    """A file that was exported; `verify` sees what it computes, and its predictions are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outputs: list[Tensor] = []

    def observe(self, inputs: Inputs) -> Trace:
        from lowbit.deploy.onnx.runner import run

        shown, outputs = run(self.path, inputs)
        self.outputs += outputs
        return Trace(tuple(_entry(key, value) for key, value in shown.items()), outputs)


class OnKernels:
    """A compiled net; codes from a run that is watched, outputs from one that is not."""

    def __init__(self, model: nn.Module) -> None:
        self.compiled = lowbit.compile(model, threads=1)
        self.outputs: list[Tensor] = []

    def observe(self, inputs: Inputs) -> Trace:
        output = self.compiled(*as_arguments(inputs))
        self.outputs.append(output)
        return Trace(self.compiled.observe(inputs).entries, (output,))


def _entry(key: str, value: Tensor) -> Entry:
    layer, _, what = key.rpartition(":")
    return Entry(layer, "codes" if what == "codes" else "output", value)


def measure(set_name: str, setting: str, data: ImageData, arguments: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """Train a net, and one record per runtime."""
    subject, start = SUBJECTS[set_name], time.thread_time()
    steps = arguments.steps or subject.steps
    model = trained(subject, data, setting, steps)
    images, labels = zip(*held_out(subject, data, arguments.images), strict=True)
    expected = _outputs(model, images)
    found = {
        "set": data.name,
        "net": subject.spec,
        "setting": setting,
        "accuracy": round(float((expected.argmax(1) == torch.cat(labels)).double().mean()), 4),
        "steps": steps,
        "train_seconds": round(time.thread_time() - start, 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        for runtime in arguments.runtimes:
            start = time.thread_time()
            other = _runtime(runtime, model, Path(folder), images[0])
            report = lowbit.verify(model, other, list(images), adversarial=False)
            record = {**found, "runtime": runtime, **figures(model, report, expected, torch.cat(other.outputs))}
            record["seconds"] = round(time.thread_time() - start, 1)
            yield record


def _runtime(name: str, model: nn.Module, folder: Path, example: Tensor) -> OnFile | OnKernels:
    if name == "kernels":
        return OnKernels(model)
    path = folder / f"net.{name}"
    lowbit.export(model, path, example[:2], check=False)  # all images follow
    return OnFile(path)


@torch.no_grad()
def _outputs(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    return torch.cat([model(x) for x in batches])


def figures(model: nn.Module, report: Report, expected: Tensor, got: Tensor) -> dict[str, Any]:
    """What a comparison found, counted."""
    read = [layer for layer in report.layers if layer.codes]
    differing = sum(layer.differing for layer in read)
    predictions = int((expected.argmax(1) != got.argmax(1)).sum())
    others = int((expected != got).any(1).sum())
    last = dict(quant_layers(model)).get(LAST)
    # From the same codes a last layer of whole numbers makes the same outputs: rounding has no say in them.
    outputs_right = last is None or not is_integer(last) or others <= differing
    return {
        "images": len(got),
        "layers": len(read),
        "layer_outputs": sum(layer.output_difference is not None for layer in report.layers),
        "codes": sum(layer.codes for layer in read),
        "differing": differing,
        "near_ties": differing if report.explained else None,
        "differing_layers": {layer.layer: layer.differing for layer in read if layer.differing},
        "predictions_differing": predictions,
        "outputs_differing": others,
        "output_difference": float((expected.double() - got.double()).abs().max()),
        "largest_output": float(expected.abs().max()),
        "first_difference": None if report.identical else f"{report.first_difference} ({report.explanation})",
        "passed": report.explained and predictions == 0 and outputs_right,
    }


def show(records: list[dict[str, Any]]) -> None:
    """One row per net and runtime."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    heads = ("set", "setting", "accuracy", "runtime", "images", "layers", "codes", "differ", "near ties")
    table = Table(*heads, "predictions", "output", "", title="against model.eval()")
    for r in records:
        ties = "not all" if r["near_ties"] is None else f"{r['near_ties']:,}"
        counts = (f"{r[key]:,}" for key in ("images", "layers", "codes", "differing"))
        cells = (r["set"], r["setting"], f"{r['accuracy']:.2%}", r["runtime"], *counts, ties)
        verdict = "as it should be" if r["passed"] else "WRONG"
        table.add_row(*cells, f"{r['predictions_differing']:,}", f"{r['output_difference']:.3g}", verdict)
    console.print(table)
    for r in records:
        if r["first_difference"]:
            console.print(f"{r['set']} {r['setting']} {r['runtime']}: {r['first_difference']}")


def _names(known: Iterable[str]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if wrong := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: choose from {','.join(known)}")
        return names

    return parse


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All records, each also printed as it comes."""
    torch.set_num_threads(1)
    records = []
    for set_name in arguments.sets:
        data = SUBJECTS[set_name].load(set_name, arguments.data)
        for setting in arguments.settings:
            for record in measure(set_name, setting, data, arguments):
                print(json.dumps(record), file=sys.stderr)
                records.append(record)
    return records


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    usual = os.environ.get("LOWBIT_TEST_DATA")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a JSON list, one record per row")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(usual) if usual else None,
        help="folder with mnist/ and cifar10-jpeg/; by default LOWBIT_TEST_DATA",
    )
    parser.add_argument("--sets", type=_names(SUBJECTS), default=list(USUAL), help=",".join(SUBJECTS))
    parser.add_argument("--settings", type=_names(SETTINGS), default=list(SETTINGS), help=",".join(SETTINGS))
    parser.add_argument("--runtimes", type=_names(RUNTIMES), default=list(RUNTIMES), help=",".join(RUNTIMES))
    parser.add_argument("--images", type=int, default=None, help="of the test set, the first ones; by default all")
    parser.add_argument("--steps", type=int, default=None, help="of training; by default what the data set wants")
    parser.add_argument("--save", type=Path, default=None, help="also write records and environment to this file")
    return parser.parse_args(words)


def main() -> None:
    """Compare and print."""
    arguments = parse()
    records = run(arguments)
    about = {key: value for key, value in environment().items() if key != "max_rss_mib"}
    about |= {"kernels": paths()[:1], "onnxruntime": onnxruntime.__version__}
    if arguments.save:
        arguments.save.write_text(json.dumps({"environment": about, "records": records}, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(records))
    else:
        show(records)
    if not all(record["passed"] for record in records):
        sys.exit(1)


if __name__ == "__main__":
    main()
