"""Single few-bit layers: how long each takes in a chain of layers, and how near that is to what the processor can do.

A layer's time is a difference: of a small net that hands it bits and takes bits from it, and of the same net without
it. So neither the quantization of floats nor their writing counts, as in the middle of a network. `alone` is the time
of a net that is this one layer, with a batch normalisation and a ReLU, from floats to floats.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lowbit
from benchmarks._inference_nets import NETS, LayerShape, layer_shapes
from benchmarks._inference_peers import Run, run_lowbit
from benchmarks.ceiling import Ceilings, products
from lowbit.deploy.measure.timing import bursts

PRODUCTS = {1: "binary_shared", 2: "int8", 4: "int8", 8: "int8"}
"""By bits of both sides: how the kernels multiply on a processor with VNNI, whose ceiling counts."""


def layers_between(net: str) -> dict[LayerShape, int]:
    """The convolutions but the first (the last layer is linear), and how many of each there are."""
    found: dict[LayerShape, int] = {}
    for shape in list(layer_shapes(NETS[net]).values())[1:-1]:
        found[shape] = found.get(shape, 0) + 1
    return found


def measure_layers(nets: Sequence[str], rounds: int, limits: Ceilings, bits: int = 1) -> list[dict[str, Any]]:
    """One record per layer shape of each net, one thread, one image."""
    torch.set_num_threads(1)
    records = []
    for net in nets:
        for shape, count in layers_between(net).items():
            times = bursts(_runs(shape, bits), rounds, threads=1)
            with_it, without = times["with"], times["without"]
            chained = statistics.median(a - b for a, b in zip(with_it, without, strict=True))
            rate = shape.macs / max(chained, 1e-6) / 1e6
            intensity = shape.macs / moved(shape, bits)
            reads = limits["bandwidth"].values()
            records.append(
                {
                    "net": net,
                    "bits": bits,
                    "layer": str(shape),
                    "count": count,
                    "mmac": round(shape.macs / 1e6, 2),
                    "mac_per_byte": round(intensity, 1),
                    "alone_ms": round(statistics.median(times["alone"]), 4),
                    "chained_ms": round(chained, 4),
                    "gmac_per_s": round(rate, 1),
                    "fractions": {name: round(rate / most, 3) for name, most in products(limits).items()},
                    "memory_bound": limits[PRODUCTS[bits]]["gmac_per_s"]
                    > intensity * max(r["gb_per_s"] for r in reads),
                }
            )
    return records


def moved(shape: LayerShape, bits: int = 1) -> float:
    """Bytes of the bits that a layer reads and writes: its input, its weights, its output, each once."""
    weights = shape.out_channels * shape.in_channels // shape.groups * shape.kernel**2
    images = shape.in_channels * shape.height * shape.width + shape.out_channels * shape.outputs
    return bits * (weights + images) / 8


def _runs(shape: LayerShape, bits: int) -> dict[str, Run]:
    layer = nn.Conv2d(
        shape.in_channels,
        shape.out_channels,
        shape.kernel,
        shape.stride,
        shape.kernel // 2,
        groups=shape.groups,
        bias=False,
    )
    before, after = nn.Conv2d(3, shape.in_channels, 1, bias=False), nn.Conv2d(shape.out_channels, 1, 1, bias=False)
    directly = nn.Conv2d(shape.in_channels, 1, 1, shape.stride, bias=False)
    few = torch.rand(1, 3, shape.height, shape.width)
    many = torch.rand(1, shape.in_channels, shape.height, shape.width)
    return {
        "with": _compiled([before, layer, after], few, bits),
        "without": _compiled([before, directly], few, bits),
        "alone": _compiled([layer], many, bits),
    }


def _compiled(layers: Sequence[nn.Conv2d], images: Tensor, bits: int) -> Run:
    parts: list[nn.Module] = []
    for layer in layers:
        parts += [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()]
    model = lowbit.convert(nn.Sequential(*parts), weights=bits, activations=bits, keep_float=())
    lowbit.calibrate(model, images.repeat(2, 1, 1, 1))
    return run_lowbit(model.eval(), images, threads=1)


def show_layers(records: Sequence[dict[str, Any]], limits: Ceilings) -> None:
    """One row per layer shape."""
    bits = records[0]["bits"] if records else 1
    kind = "binary" if bits == 1 else "int8"
    names = {name: f"of {name}, {most:.0f}" for name, most in products(limits).items() if name.startswith(kind)}
    head = ("layer", "times", "MMAC", "MAC/byte", "alone ms", "in a chain ms", "GMAC/s")
    for net in dict.fromkeys(record["net"] for record in records):
        table = Table(*head, *names.values(), title=f"{net}, W{bits}A{bits}, one thread, one image")
        for r in (record for record in records if record["net"] == net):
            place = (r["layer"], str(r["count"]), f"{r['mmac']:.1f}", f"{r['mac_per_byte']:.0f}")
            times = (f"{r['alone_ms']:.3f}", f"{r['chained_ms']:.3f}", f"{r['gmac_per_s']:.0f}")
            table.add_row(*place, *times, *(f"{r['fractions'][name]:.0%}" for name in names))
        console = Console()
        Console(width=None if console.is_terminal else 140).print(table)
