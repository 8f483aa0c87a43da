"""The files and runs that the inference benchmark compares; other runtimes' are in `lowbit.deploy.measure.peers`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._inference_nets import Net, Setting
from lowbit.deploy import save
from lowbit.deploy.kernels.compiled import compile as compile_model
from lowbit.deploy.measure.peers import INPUT, Run, run_onnx, run_torch, write_float, write_int8

__all__ = ["INPUT", "Files", "Run", "error", "run_lowbit", "run_onnx", "run_torch"]

CALIBRATION_BATCHES = 8


class Files:
    """The files of a net, written into a folder when first asked for."""

    def __init__(self, folder: Path, name: str, net: Net) -> None:
        self.folder = folder
        self.name = name
        self.net = net

    def onnx_float(self, batch: int) -> Path:
        """The float net for batches of this size, its batch normalisations folded into the layers before them."""
        path = self.folder / f"{self.name}-{batch}.onnx"
        if not path.exists():
            write_float(self.net.build(), self.net.images(batch, seed=0), path)
        return path

    def onnx_int8(self, batch: int) -> Path:
        """The same net quantized: unsigned bytes for activations, signed ones per channel for weights."""
        path = self.folder / f"{self.name}-{batch}-int8.onnx"
        if not path.exists():
            write_int8(self.onnx_float(batch), path, _calibration(self.net, batch))
        return path

    def lowbit(self, name: str, setting: Setting) -> Path:
        """The net in the bits of a setting, as `lowbit export` writes it."""
        path = self.folder / f"{self.name}-{name}.lowbit"
        if not path.exists():
            save(setting.convert(self.net), path)
        return path


def _calibration(net: Net, batch: int) -> Iterator[Tensor]:
    for seed in range(CALIBRATION_BATCHES):
        found = net.images(min(batch, 8), seed=2 + seed)
        yield found.repeat(-(-batch // len(found)), 1, 1, 1)


def run_lowbit(model: nn.Module, images: Tensor, threads: int) -> Run:
    """The compiled net. Its result is that of the trained one bit for bit, or there is nothing to time."""
    compiled = compile_model(model, threads=threads)
    with torch.no_grad():
        if not torch.equal(compiled(images), model.eval()(images)):
            raise AssertionError("the compiled net does not compute what the trained one computes")
    return lambda: compiled(images)


def error(found: Any, expected: Tensor) -> float:
    """‖found − expected‖/‖expected‖."""
    return float((torch.as_tensor(found) - expected).norm() / expected.norm())
