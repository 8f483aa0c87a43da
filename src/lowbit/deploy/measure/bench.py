"""How long an exported file takes, and the float net of the same architecture in other runtimes beside it."""

from __future__ import annotations

import importlib
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from lowbit._errors import ConfigError
from lowbit.deploy.files.origin import require_origin
from lowbit.deploy.measure.peers import FORMATS, Run, run_onnx, run_torch, write_float, write_int8
from lowbit.deploy.measure.timing import bursts, machine, ratio, torch_threads
from lowbit.deploy.opened import open_artefact

SECONDS = 60.0
"""Of rounds, but at least five are made."""
CALIBRATION_BATCHES = 8
CALIBRATION_IMAGES = 8  # in one of these batches, at most
_PEERS = {"ort_int8": "float net, int8, ONNX Runtime", "ort_float": "float net, ONNX Runtime"}


@dataclass(frozen=True)
class BenchResult:
    """What `lowbit bench` answers. Times are medians over the rounds, in milliseconds per batch.

    Args:
        artefact: the file.
        model: its architecture.
        runtime: what ran the file.
        batch, threads, rounds: images at a time, threads, and how often everybody had a turn.
        lowbit_ms: the file.
        ort_int8_ms, ort_float_ms: the float net in ONNX Runtime, and the same quantized to 8 bits there; None if that
            is not installed or does not take the net.
        torch_float_ms: the float net in PyTorch, in the faster of its two memory formats.
        speedups: how many times as fast as each of these the file is: medians of the ratios within a round.
        notices: why something is missing.
        machine: what all this ran on.
    """

    artefact: str
    model: str
    runtime: str
    batch: int
    threads: int
    rounds: int
    lowbit_ms: float
    ort_int8_ms: float | None
    ort_float_ms: float | None
    torch_float_ms: float
    speedups: dict[str, float | None]
    notices: list[str]
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def render(self) -> Table:
        """The result as a table for people."""
        caption = (
            f"{self.model}, {self.batch} {'image' if self.batch == 1 else 'images'} at a time, {self.threads} "
            f"{'thread' if self.threads == 1 else 'threads'}; medians of {self.rounds} rounds\n"
            f"{self.machine['processor']}"
        )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
        table.add_column("what runs", overflow="fold")
        table.add_column("ms", justify="right", no_wrap=True)
        table.add_column("takes × as long", justify="right", no_wrap=True)
        table.add_row(f"{self.artefact}, {self.runtime}", f"{self.lowbit_ms:.3g}", "1")
        times = {"ort_int8": self.ort_int8_ms, "ort_float": self.ort_float_ms, "torch_float": self.torch_float_ms}
        for name, value in times.items():
            more = self.speedups[name]
            row = ("–", "–") if value is None or more is None else (f"{value:.3g}", f"{more:.2f}")
            table.add_row({**_PEERS, "torch_float": "float net, PyTorch"}[name], *row)
        return table


@dataclass
class _Contest:
    """Everybody's run on the same images."""

    runs: dict[str, Run]
    notices: list[str] = field(default_factory=list)


def bench(
    path: str | Path, threads: int = 1, batch: int = 1, rounds: int = 20, model: str | None = None
) -> BenchResult:
    """Time an exported file, and its architecture in float in other runtimes, in turn in this one process.

    The images are random, and so are the weights of the float nets: speed does not depend on them. ONNX Runtime gets
    the float net with batch normalisations folded, and for int8 what its `quantize_static` makes of that (QDQ,
    unsigned bytes for activations, signed ones per channel for weights).

    Args:
        path: a `.lowbit` file, which runs on the compiled kernels, or an `.onnx` file.
        threads: of everybody.
        batch: images at a time.
        rounds: turns of everybody; fewer, at least five, when they take longer than a minute.
        model: the architecture, where it is a function of the user's own; see `Origin.build`.

    Raises: ArtefactError, ConfigError, UnknownNameError.
    """
    path = Path(path)
    for name, value in (("threads", threads), ("batch", batch), ("rounds", rounds)):
        if value < 1:
            raise ConfigError(f"{name} is {value}, expected a whole number from 1")
    if path.suffix == ".qonnx":
        raise ConfigError(
            f"'{path}' is for FPGA tools: the reference that computes it here says nothing about speed; export the "
            "run to .lowbit or .onnx"
        )
    origin = require_origin(path)
    with torch_threads(threads), tempfile.TemporaryDirectory() as folder:
        images = torch.randn(batch, origin.in_channels, *origin.image_size, generator=torch.Generator().manual_seed(0))
        net = _seasoned(origin.build(path, model), images)
        opened = open_artefact(path, threads, model)
        opened.require_same(images)
        contest = _Contest({"lowbit": lambda: opened.run(images)})
        _add_peers(contest, net, images, threads, Path(folder))
        times = bursts(contest.runs, rounds, threads, SECONDS)
    return _result(times, contest.notices, path, model or origin.model, opened.runtime, batch, threads)


def _seasoned(net: nn.Module, images: Tensor) -> nn.Module:
    """The net, its normalisations with the statistics of some random images."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        net.train()(torch.randn(8, *images.shape[1:], generator=generator))
    return net.eval()


def _add_peers(contest: _Contest, net: nn.Module, images: Tensor, threads: int, folder: Path) -> None:
    plain, small = folder / "float.onnx", folder / "int8.onnx"

    def write_plain() -> Path:
        write_float(net, images, plain)
        return plain

    def write_small() -> Path:
        generator = torch.Generator().manual_seed(2)
        write_int8(plain, small, (_random(images, generator) for _ in range(CALIBRATION_BATCHES)))
        return small

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not _installed(name)]
    if missing:
        contest.notices.append(
            f"not installed: {', '.join(missing)}; without ONNX Runtime there is nothing to compare with but PyTorch "
            "(pip install 'lowbit[onnx]')"
        )
    else:
        for name, write in (("ort_float", write_plain), ("ort_int8", write_small)):
            _add(contest, name, write, images, threads)
    for name, memory_format in FORMATS.items():
        contest.runs[name] = run_torch(net, images, memory_format)


def _add(contest: _Contest, name: str, write: Callable[[], Path], images: Tensor, threads: int) -> None:
    try:
        run = run_onnx(write(), images, threads)
        run()
    except Exception as error:  # exporters and runtimes let through whatever they come across
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        contest.notices.append(f"{_PEERS[name]}: not to be had for this net ({text[:200]})")
    else:
        contest.runs[name] = run


def _random(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images to calibrate on, as many as the net takes at a time; a large batch repeats the first."""
    some = torch.randn(min(len(images), CALIBRATION_IMAGES), *images.shape[1:], generator=generator)
    return some.repeat(-(-len(images) // len(some)), *[1] * (images.ndim - 1))[: len(images)]


def _installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _result(
    times: dict[str, list[float]], notices: list[str], path: Path, model: str, runtime: str, batch: int, threads: int
) -> BenchResult:
    middle = {name: statistics.median(values) for name, values in times.items()}
    faster = min(FORMATS, key=lambda name: middle[name])
    named = {"ort_int8": "ort_int8", "ort_float": "ort_float", "torch_float": faster}
    speedups = {key: ratio(times[name], times["lowbit"]) if name in times else None for key, name in named.items()}
    medians = {name: round(value, 4) for name, value in middle.items()}
    return BenchResult(
        artefact=path.name,
        model=model,
        runtime=runtime,
        batch=batch,
        threads=threads,
        rounds=len(times["lowbit"]),
        lowbit_ms=medians["lowbit"],
        ort_int8_ms=medians.get("ort_int8"),
        ort_float_ms=medians.get("ort_float"),
        torch_float_ms=medians[faster],
        speedups=speedups,
        notices=notices,
        machine=machine() | {"onnxruntime": _version("onnxruntime")},
    )


def _version(name: str) -> str | None:
    return str(importlib.import_module(name).__version__) if _installed(name) else None
