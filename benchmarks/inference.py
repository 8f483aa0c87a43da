"""How fast compiled low-bit nets are: `lowbit.compile` against ONNX Runtime (float32, int8) and PyTorch.

    python -m benchmarks.inference [--net NAME ...] [--setting W1A1 ...] [--batch 1 32] [--threads 1 2] [--rounds N]
                                   [--no-memory] [--json] [--save FILE]
    python -m benchmarks.inference --roofline FILE.png [--layer-bits 2]  # each layer, against what the processor can do

Everything runs in this one process, in turn: medians, and medians of the ratios within a round (of the calls of one
turn, the fastest counts). On one thread that is time on the processor, with more it is the clock on the wall. The nets
have random weights: speed does not depend on them. Before it is timed, a compiled net is compared with `model.eval()`,
bit for bit.

ONNX Runtime gets the float net of the same shapes, exported by torch.onnx with batch normalisation folded, and for
int8 the same quantized by `quantize_static`: QDQ, unsigned bytes for activations, signed ones per channel for weights,
random calibration data; options are its defaults but for the number of threads. PyTorch runs the float net eagerly, in
the faster of its two memory formats. First and last layers of low-bit nets are float; in settings that end in
`-edges8` they have 8 bits.

The ceiling is what the processor can do of such products (`benchmarks.ceiling`): XOR and carry-save adders for W1A1,
int8 for other bits, float32 with float activations; the share is of the whole net, first and last layers included.

Memory is that of a fresh process on one thread, beyond its imports: the peak while it opens the file and runs, and
what it holds afterwards. Bytes are those of the files: `.lowbit`, and both `.onnx`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import _inference_memory
from benchmarks._inference_layers import measure_layers, show_layers
from benchmarks._inference_nets import NETS, SETTINGS, USUAL, USUAL_SETTINGS, macs
from benchmarks._inference_peers import Files, Run, error, run_lowbit, run_onnx, run_torch
from benchmarks._measure import environment
from benchmarks._roofline import draw
from benchmarks.ceiling import NoCeiling, ceilings, products
from lowbit.deploy.kernels.loader import instruction_sets
from lowbit.deploy.measure.timing import bursts, ratio

SHORT = {"lowbit": "lowbit", "ort_int8": "int8", "ort_float": "float", "torch": "torch"}
PEERS = ("ort_int8", "ort_float", "torch")
STORED = ("lowbit", "ort_int8", "ort_float")
FORMATS = {"torch": torch.contiguous_format, "torch channels-last": torch.channels_last}
SECONDS = 60.0  # of rounds, for one net, batch and number of threads
FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_vpopcntdq",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "sve",
)


def measure_net(
    name: str, arguments: argparse.Namespace, folder: Path, peaks: dict[str, float]
) -> list[dict[str, Any]]:
    """One record per batch, number of threads and setting. `peaks`: GMAC/s of one thread by kind of product."""
    net = NETS[name]
    files = Files(folder, name, net)
    records = []
    for batch in arguments.batch:
        memory = {} if arguments.no_memory else peak_memory(files, name, batch, arguments.setting)
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            runs, errors = prepare(files, batch, threads, arguments.setting)
            times = bursts(runs, arguments.rounds, threads, SECONDS)
            for setting in arguments.setting:
                place = {"net": name, "setting": setting, "batch": batch, "threads": threads}
                record = {**place, **figures(times, setting, macs(net) * batch), **sizes(files, batch, setting)}
                peak = peaks.get(SETTINGS[setting].product)
                record["of_ceiling"] = round(record["gmac_per_s"] / peak / threads, 3) if peak else None
                taken = {peer: memory.get(peer) for peer in (setting, "ort_float", "ort_int8", "torch")}
                record["memory_mib"] = {"lowbit": taken.pop(setting), **taken}
                records.append({**record, **errors, "rounds": len(times[setting])})
                print(json.dumps(records[-1]), file=sys.stderr)
            del runs  # with the threads that they own
    return records


def prepare(files: Files, batch: int, threads: int, settings: Sequence[str]) -> tuple[dict[str, Run], dict[str, float]]:
    """Everybody's run on the same images, and how far ONNX Runtime's results are from PyTorch's float ones."""
    images = files.net.images(batch, seed=0)
    plain = files.net.build()
    with torch.inference_mode():
        expected = plain(images)
    runs: dict[str, Run] = {
        "ort_float": run_onnx(files.onnx_float(batch), images, threads),
        "ort_int8": run_onnx(files.onnx_int8(batch), images, threads),
    }
    errors = {f"{name}_error": round(error(run()[0], expected), 9) for name, run in runs.items()}
    for name, memory_format in FORMATS.items():
        runs[name] = run_torch(plain, images, memory_format)
    for name in settings:
        runs[name] = run_lowbit(SETTINGS[name].convert(files.net), images, threads)
    return runs, errors


def figures(times: dict[str, list[float]], setting: str, operations: int) -> dict[str, Any]:
    """Medians, and ratios of peers to lowbit."""
    faster = min(FORMATS, key=lambda name: statistics.median(times[name]))
    named = {"lowbit": setting, "ort_int8": "ort_int8", "ort_float": "ort_float", "torch": faster}
    middle = {peer: statistics.median(times[name]) for peer, name in named.items()}
    return {
        **{f"{peer}_ms": round(value, 3) for peer, value in middle.items()},
        **{f"{peer}/lowbit": ratio(times[named[peer]], times[setting]) for peer in PEERS},
        "torch_format": "channels-last" if "last" in faster else "contiguous",
        "gmac_per_s": round(operations / middle["lowbit"] / 1e6, 1),
    }


def sizes(files: Files, batch: int, setting: str) -> dict[str, int]:
    """Bytes of the three files."""
    lowbit_file = files.lowbit(setting, SETTINGS[setting])
    found = {"lowbit": lowbit_file, "ort_int8": files.onnx_int8(batch), "ort_float": files.onnx_float(batch)}
    return {f"{peer}_bytes": path.stat().st_size for peer, path in found.items()}


def peak_memory(files: Files, name: str, batch: int, settings: Sequence[str]) -> dict[str, dict[str, float] | None]:
    """MiB of processes of their own: of each setting, and of each peer."""
    plain, small = files.onnx_float(batch), files.onnx_int8(batch)
    found = {
        "ort_float": _inference_memory.measured("onnx", name, plain, batch),
        "ort_int8": _inference_memory.measured("onnx", name, small, batch),
        "torch": _inference_memory.measured("torch", name, plain, batch),
    }
    for setting in settings:
        file = files.lowbit(setting, SETTINGS[setting])
        found[setting] = _inference_memory.measured("lowbit", name, file, batch)
    return found


def machine() -> dict[str, Any]:
    """`environment`, and what matters here besides."""
    info = Path("/proc/cpuinfo")
    has = set(info.read_text().split()) if info.exists() else set()
    return {
        **{key: value for key, value in environment().items() if key not in ("threads", "max_rss_mib")},
        "flags": [flag for flag in FLAGS if flag in has],
        "kernels": instruction_sets(),
        "onnxruntime": onnxruntime.__version__,
    }


def show(records: list[dict[str, Any]]) -> None:
    """For each net a table of times and one of sizes."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    places = ("setting", "batch", "threads")
    for net in dict.fromkeys(record["net"] for record in records):
        own = [record for record in records if record["net"] == net]
        ratios = [f"{SHORT[peer]} ×" for peer in PEERS]
        head = (*places, *(f"{peer} ms" for peer in SHORT.values()), *ratios, "GMAC/s", "ceiling")
        table = Table(*head, title=f"{net} (×: times lowbit's)")
        for r in own:
            cells = [f"{r[f'{peer}_ms']:.3f}" if r[f"{peer}_ms"] < 10 else f"{r[f'{peer}_ms']:.1f}" for peer in SHORT]
            cells += [f"{r[f'{peer}/lowbit']:.2f}" for peer in PEERS]
            share = "–" if r["of_ceiling"] is None else f"{r['of_ceiling']:.0%}"
            table.add_row(*(str(r[place]) for place in places), *cells, f"{r['gmac_per_s']:.1f}", share)
        console.print(table)
        if any(r["memory_mib"]["lowbit"] for r in own):
            console.print(_sizes(net, own))


def _sizes(net: str, records: list[dict[str, Any]]) -> Table:
    stored = [f"{SHORT[peer]} kB" for peer in STORED]
    table = Table("setting", "batch", *stored, *(f"{peer} MiB" for peer in SHORT.values()), title=f"{net}: peak (held)")
    for r in {(r["setting"], r["batch"]): r for r in records}.values():
        taken = [r["memory_mib"][peer] for peer in SHORT]
        cells = [f"{m['peak']:.0f} ({m['held']:.0f})" if m else "–" for m in taken]
        kilobytes = [f"{r[f'{peer}_bytes'] / 1e3:,.0f}" for peer in STORED]
        table.add_row(r["setting"], str(r["batch"]), *kilobytes, *cells)
    return table


def roofline(arguments: argparse.Namespace) -> None:
    """Layer by layer: the table, the picture, and the figures if they are wanted."""
    try:
        limits = ceilings()
    except NoCeiling as error:
        sys.exit(f"no roofline: {error}")
    layers = measure_layers(arguments.net or ["resnet18", "resnet20"], arguments.rounds, limits, arguments.layer_bits)
    draw(layers, limits, arguments.roofline, machine()["processor"])
    result = {"environment": machine(), "ceilings": limits, "layers": layers}
    if arguments.save:
        arguments.save.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(result))
    else:
        show_layers(layers, limits)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a JSON list, one record per row")
    parser.add_argument("--net", nargs="+", choices=NETS, default=None, help=f"by default {', '.join(USUAL)}")
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=USUAL_SETTINGS, help="bits")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15, help="turns of everybody; fewer, at least 5, if slow")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory, which takes longest")
    parser.add_argument("--roofline", type=Path, metavar="FILE.png", help="time single layers and draw them")
    parser.add_argument("--layer-bits", type=int, choices=(1, 2, 4), default=1, help="of those layers, on both sides")
    parser.add_argument("--save", type=Path, default=None, help="also write records and environment to this file")
    arguments = parser.parse_args()
    if arguments.roofline:
        roofline(arguments)
        return
    try:
        peaks = products(ceilings())
    except NoCeiling as error:
        print(f"no share of a ceiling: {error}", file=sys.stderr)
        peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        records = [r for name in arguments.net or USUAL for r in measure_net(name, arguments, Path(folder), peaks)]
    if arguments.save:
        arguments.save.write_text(json.dumps({"environment": machine(), "records": records}, indent=2) + "\n")
    if arguments.json:
        print(json.dumps(records))
    else:
        show(records)


if __name__ == "__main__":
    main()
