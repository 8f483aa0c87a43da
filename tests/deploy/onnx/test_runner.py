"""What the runner says about files that are not ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("torch.onnx.ops")

import onnx
from onnx import TensorProto, helper

from lowbit import ArtefactError
from lowbit.deploy.onnx.file import set_metadata
from lowbit.deploy.onnx.runner import run


def doubled(path: Path, factor: float, ours: bool = True) -> None:
    nodes = [helper.make_node("Mul", ["input", "factor"], ["output"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in ("input", "output")]
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if ours:
        tensors = {"a:codes": {"tensor": "output", "zero_point": 1}, "a:output": {"tensor": "output", "zero_point": 0}}
        set_metadata(model, {"version": 1, "form": "float", "tensors": tensors})
    onnx.save(model, path)


def test_codes_are_whole_numbers_less_the_zero_point_and_a_new_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    doubled(path, 2)
    for factor in (2, 3.25):
        doubled(path, factor)
        seen, (output,) = run(path, torch.tensor([0.0, 4.0]))
        assert seen["a:codes"].tolist() == [-1, int(4 * factor) - 1]
        assert seen["a:codes"].dtype == torch.int32
        assert output.tolist() == seen["a:output"].tolist() == [0, 4 * factor]


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(ArtefactError, match="there is no file"):
        run(path, torch.ones(1))
    path.write_bytes(b"no protobuf at all")
    with pytest.raises(ArtefactError, match="no ONNX file"):
        run(path, torch.ones(1))
    doubled(path, 2, ours=False)
    with pytest.raises(ArtefactError, match="was not written by lowbit"):
        run(path, torch.ones(1))


def test_a_file_that_the_runtime_cannot_run(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    doubled(path, 2)
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperation"
    onnx.save(model, path)
    with pytest.raises(ArtefactError, match=r"ONNX Runtime \S+ cannot run"):
        run(path, torch.ones(1))
