"""What low-bit networks are timed against: the float net of the same shapes in ONNX Runtime, float and int8, and torch.

The extra `onnx` is imported where it is needed.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

Run: TypeAlias = Callable[[], Any]
INPUT = "images"
"""The name of the input of the files written here."""
FORMATS = {"torch": torch.contiguous_format, "torch channels-last": torch.channels_last}
"""PyTorch's two memory formats: which is the faster depends on the net."""


def write_float(model: nn.Module, example: Tensor, path: Path) -> None:
    """A float net as ONNX, for batches of this size, its batch normalisations folded into the layers before them."""
    with quiet():
        torch.onnx.export(
            folded(model), (example,), path, input_names=[INPUT], external_data=False, verbose=False, dynamo=True
        )


def write_int8(source: Path, path: Path, batches: Iterable[Tensor]) -> None:
    """A float ONNX file quantized by ONNX Runtime: unsigned bytes for activations, signed ones per channel for weights.

    Args:
        source: the float file.
        path: the file to write.
        batches: to calibrate on.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(CalibrationDataReader):  # type: ignore[misc]
        """Batches, one by one."""

        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            """The next batch; None after the last."""
            found = next(self.batches, None)
            return None if found is None else {INPUT: found.numpy()}

    prepared = path.with_suffix(".prepared")
    try:
        with quiet():
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(path),
                Calibration(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
    finally:
        prepared.unlink(missing_ok=True)


def folded(model: nn.Module) -> nn.Module:
    """A copy whose batch normalisations are folded into the layers whose only reader they are.

    A model whose forward method cannot be traced is copied as it is.
    """
    plain = copy.deepcopy(model).eval()
    try:
        traced = fx.symbolic_trace(plain)
    except Exception:  # tracing runs the user's own code
        return plain
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.modules.batchnorm._BatchNorm):
            continue
        before = node.args[0]
        assert isinstance(before, fx.Node)
        layer: Any = modules.get(str(before.target)) if before.op == "call_module" else None
        if not isinstance(layer, (nn.Conv2d, nn.Linear)) or len(before.users) != 1:
            continue
        fuse: Any = fuse_conv_bn_eval if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval
        traced.set_submodule(str(before.target), fuse(layer, modules[str(node.target)]))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def session(path: Path, threads: int) -> Any:
    """ONNX Runtime with default options but for the number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_onnx(path: Path, images: Tensor, threads: int) -> Run:
    """A file of one input in ONNX Runtime, on these images."""
    opened = session(path, threads)
    given = {opened.get_inputs()[0].name: images.numpy()}
    return lambda: opened.run(None, given)


def run_torch(model: nn.Module, images: Tensor, memory_format: torch.memory_format) -> Run:
    """A copy of the net in PyTorch, eagerly, in a memory format."""
    moved: Any = copy.deepcopy(model).to(memory_format=memory_format)  # type: ignore[call-overload]
    given = images.contiguous(memory_format=memory_format)

    def run() -> Any:
        with torch.inference_mode():
            return moved(given)

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters talk; their warnings are about torchvision and their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "root", "")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
