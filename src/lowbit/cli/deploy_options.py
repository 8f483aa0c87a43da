"""The options of the commands that deploy: one frozen dataclass each, whose docstrings are the help texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ExportCommand:
    """Write a run's model to one file that runs elsewhere, and prove that the file computes the same.

    The proof: every code of every low-bit layer, on test images and on inputs made to hurt. A file that fails it is not
    kept. The ending says what the file is for: .lowbit for the compiled kernels, .onnx for ONNX Runtime, .qonnx for
    FPGA tools.
    """

    run: Path
    """Run folder."""
    to: Path | None = None
    """File to write, ending in .lowbit, .onnx or .qonnx; None takes model.lowbit in the run folder."""
    form: Literal["int8", "int4", "float"] | None = None
    """Numbers in an .onnx file: int8 for speed (the default), int4 for size, float for any ONNX runtime."""
    opset: int | None = None
    """ONNX operations of an .onnx or .qonnx file: 21 (the default), or 25, which can hold 2-bit weights."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint: that of the best epoch or of the last one."""
    images: int = 100
    """Test images for the proof, drawn at random."""
    data_path: Path | None = None
    """Where the data is now, if it has moved since the run."""
    overwrite: bool = False
    """Replace a file that exists."""
    json: bool = False
    """Print one JSON object with the result as the last line of standard output."""


@dataclass(frozen=True)
class VerifyCommand:
    """Compare an exported file with the run that it was made from, layer by layer, code by code.

    On test images and on inputs made to hurt. The exit status is 0 if every code is the same, 1 if not.
    """

    artefact: Path
    """File that `lowbit export` wrote."""
    run: Path
    """Run folder."""
    checkpoint: Literal["best", "last"] | None = None
    """Which checkpoint; None takes the one that the file was made from."""
    images: int = 100
    """Test images to compare on, drawn at random."""
    data_path: Path | None = None
    """Where the data is now, if it has moved since the run."""
    seed: int = 0
    """Seed of the choice of images and of the inputs made to hurt."""
    json: bool = False
    """Print one JSON object with the report as the last line of standard output."""


@dataclass(frozen=True)
class PredictCommand:
    """Accuracy and speed of an exported file on test images; the run is not needed.

    A .lowbit file runs on the compiled kernels, an .onnx file in ONNX Runtime, a .qonnx file in qonnx.
    """

    artefact: Path
    """File that `lowbit export` wrote."""
    data: str | None = None
    """Data source (see `lowbit list data`); None takes the one that the model was trained on."""
    data_path: Path | None = None
    """Folder or file with the data."""
    model: str | None = None
    """The model that the file names, where it is your own pkg.mod:fn, to say that you trust it."""
    batch_size: int = 256
    """Images at a time."""
    threads: int | None = None
    """Threads; None takes PyTorch's number."""
    limit: int | None = None
    """The most test images to take, drawn at random; None takes all."""
    json: bool = False
    """Print one JSON object with the result as the last line of standard output."""


@dataclass(frozen=True)
class BenchCommand:
    """How long an exported file takes, against its architecture in float: ONNX Runtime (float, int8) and PyTorch.

    Everybody takes turns in one process, on the same random images. The times are medians over the rounds.
    """

    artefact: Path
    """File that `lowbit export` wrote: .lowbit, or .onnx."""
    threads: int = 1
    """Threads of everybody."""
    batch: int = 1
    """Images at a time."""
    rounds: int = 20
    """Turns of everybody; fewer, at least five, when they take longer than a minute."""
    model: str | None = None
    """The model that the file names, where it is your own pkg.mod:fn, to say that you trust it."""
    json: bool = False
    """Print one JSON object with the result as the last line of standard output."""
