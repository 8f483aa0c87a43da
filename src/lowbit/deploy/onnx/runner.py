"""Running an exported ONNX or QONNX file, and looking at what its layers compute."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from lowbit._errors import ArtefactError
from lowbit.deploy.onnx.file import metadata
from lowbit.deploy.onnx.graph import QONNX, Array


def run(path: str | Path, inputs: Tensor | tuple[Tensor, ...]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """What a file computes: with ONNX Runtime, in one thread and otherwise with its default options, or with qonnx.

    Args:
        path: a file that `lowbit.export` wrote with to="onnx" or to="qonnx".
        inputs: a tensor, or one per input of the model; any batch size.

    Returns:
        tensors: by the keys of `observe`, "layer:codes" (int32) and "layer:output" (float32); a layer that is fused
            with what follows has no output of its own.
        outputs: what the model returns, from a run in which nobody looks.

    Raises: ArtefactError for another file, or if the outputs are others when the layers are looked at.
    """
    path = Path(path)
    try:
        state = path.stat()
    except FileNotFoundError:
        raise ArtefactError(f"there is no file '{path}'") from None
    file = _open(path, state.st_mtime_ns, state.st_size)
    arrays = [t.detach().cpu().numpy() for t in (inputs if isinstance(inputs, tuple) else (inputs,))]
    feeds = {value.name: array for value, array in zip(file.model.graph.input, arrays, strict=True)}
    seen, results = file.run(feeds)
    found = {key: _tensor(key, seen[entry["tensor"]], entry["zero_point"]) for key, entry in file.tensors.items()}
    return found, tuple(torch.from_numpy(np.array(result)) for result in results)


@lru_cache(maxsize=1)
def _open(path: Path, modified: int, size: int) -> _File:
    """The file, ready to run; kept, since a comparison runs one file on many inputs."""
    return _File(path)


class _File:
    """A file and what runs it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model, content = load_file(path)
        self.tensors: dict[str, Any] = content["tensors"]
        self.outputs = [value.name for value in self.model.graph.output]
        self.qonnx = any(entry.domain == QONNX for entry in self.model.opset_import)
        self.looked = list(dict.fromkeys([*(entry["tensor"] for entry in self.tensors.values()), *self.outputs]))
        self.sized: dict[int, Any] = {}
        if not self.qonnx:
            self.session = self._session(self.model)
            # More outputs can keep the runtime from fusing what it otherwise would: hence two sessions.
            looking = onnx.ModelProto()
            looking.CopyFrom(self.model)
            more = [name for name in self.looked if name not in self.outputs]
            looking.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in more)
            self.looking = self._session(looking)

    def _session(self, model: onnx.ModelProto) -> Any:
        """One thread, and otherwise what every user gets. Raises: ArtefactError."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # it warns of what it leaves to slower kernels
        try:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception as error:  # of a dozen types of its own
            reason = str(error).strip().splitlines()[0][:300]
            raise ArtefactError(f"ONNX Runtime {onnxruntime.__version__} cannot run '{self.path}': {reason}") from None

    def run(self, feeds: dict[str, Array]) -> tuple[dict[str, Array], list[Array]]:
        """All tensors that can be looked at, by name, and what the model returns."""
        if self.qonnx:
            seen = self._run_qonnx(feeds)
            return seen, [seen[name] for name in self.outputs]
        results: list[Array] = self.session.run(self.outputs, feeds)
        seen = dict(zip(self.looked, self.looking.run(self.looked, feeds), strict=True))
        for name, result in zip(self.outputs, results, strict=True):
            if not np.array_equal(seen[name], result, equal_nan=result.dtype.kind == "f"):
                off = float(np.abs(seen[name].astype(np.float64) - result).max())
                raise ArtefactError(f"'{self.path}': '{name}' changes by up to {off:.3g} when the layers are looked at")
        return seen, results

    def _run_qonnx(self, feeds: dict[str, Array]) -> dict[str, Array]:
        from qonnx.core.onnx_exec import execute_onnx

        batch = len(next(iter(feeds.values())))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if batch not in self.sized:
                self.sized[batch] = _sized(self.model, batch)
            seen: dict[str, Array] = execute_onnx(self.sized[batch], feeds, return_full_exec_context=True)
        return seen


def _tensor(key: str, value: Array, zero_point: int) -> Tensor:
    if key.endswith(":codes"):
        return torch.from_numpy(value.astype(np.int32) - np.int32(zero_point))
    return torch.from_numpy(np.array(value))


def load_file(path: Path) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model of a file that `lowbit.export` wrote, and its metadata. Raises: ArtefactError."""
    try:
        model = onnx.load(path)
    except FileNotFoundError:
        raise ArtefactError(f"there is no file '{path}'") from None
    except Exception as error:
        raise ArtefactError(f"'{path}' is no ONNX file, or is damaged: {type(error).__name__}") from None
    content = metadata(model)
    if content is None:
        raise ArtefactError(f"'{path}' was not written by lowbit.export: it does not say where its layers are")
    return model, content


def _sized(model: onnx.ModelProto, batch: int) -> Any:
    """The model for one size of the batch, as qonnx takes it: with every shape known beforehand."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.infer_shapes import InferShapes

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output, *fixed.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "batch":
                dim.dim_value = batch
    return ModelWrapper(fixed).transform(InferShapes())
