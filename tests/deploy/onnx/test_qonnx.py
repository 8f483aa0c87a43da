"""QONNX files: the nodes, and what qonnx makes of them. That it computes the same codes is in test_onnx_forms.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("onnxscript")
pytest.importorskip("qonnx")
pytest.importorskip("torch.onnx.ops")

import onnx
from onnx import numpy_helper

from lowbit import calibrate, convert
from lowbit.deploy.onnx.codes import qonnx_round
from lowbit.deploy.onnx.dialects import DIALECTS
from lowbit.deploy.onnx.file import trace, write
from lowbit.deploy.onnx.graph import QONNX, Writer
from lowbit.quantizers import Grid


@pytest.fixture(scope="module")
def file() -> onnx.ModelProto:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    overrides = {"0": {"weights": 1, "activations": 1, "activation_quantizer": "sign"}}
    converted = convert(model, weights=3, activations=2, keep_float=(), overrides=overrides)
    example = torch.randn(4, 6)
    calibrate(converted, example)
    return write(trace(converted.eval(), (example,), 21), DIALECTS["qonnx", "float"])[0]


def test_weights_and_activations_pass_a_node_that_says_their_type(file: onnx.ModelProto) -> None:
    found = [(node.op_type, node.input[0]) for node in file.graph.node if node.domain == QONNX]
    assert sorted(found[:2]) == [("BipolarQuant", "0.weight"), ("BipolarQuant", "input")]
    assert [kind for kind, _ in found[2:]] == ["Quant"] * 4
    values = {i.name: numpy_helper.to_array(i) for i in file.graph.initializer}
    for node in file.graph.node:
        if node.op_type == "Quant":  # scale 1, zero point 0: whole numbers
            assert [values[name].tolist() for name in node.input[1:3]] == [1, 0]
    assert set(values["0.weight"].reshape(-1).tolist()) == {-1, 1}


def test_qonnx_knows_the_types_and_cleans_the_graph(file: onnx.ModelProto) -> None:
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.util.cleanup import cleanup_model

    fixed = onnx.ModelProto()
    fixed.CopyFrom(file)
    for value in (*fixed.graph.input, *fixed.graph.output, *fixed.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "batch":
                dim.dim_value = 1
    model = cleanup_model(ModelWrapper(fixed)).transform(InferDataTypes())
    types = [str(model.get_tensor_datatype(node.output[0])) for node in model.graph.node if node.domain == QONNX]
    assert sorted(types) == ["BIPOLAR", "BIPOLAR", "INT3", "INT3", "UINT2", "UINT2"]


@pytest.mark.parametrize(
    "grid", [Grid(-1, 1), Grid(-4, 3), Grid(0, 1), Grid(0, 255), Grid(-7, 7, 2), Grid(-255, 255, 2)]
)
def test_a_grid_fits_the_integers_of_its_node(grid: Grid) -> None:
    from qonnx.custom_op.general.intquant import int_quant

    writer = Writer({}, set(), 21)
    qonnx_round(writer, grid, "x", "codes")
    (node,) = writer.nodes
    values = {i.name: numpy_helper.to_array(i) for i in writer.constants}
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    whole = torch.arange(grid.low, grid.high + 1, grid.step).float().numpy()
    rounding = attributes.pop("rounding_mode").decode()
    found = int_quant(whole, *(values[name] for name in node.input[1:]), **attributes, rounding_mode=rounding)
    assert found.tolist() == whole.tolist()
    ends = int_quant(whole * 100, *(values[name] for name in node.input[1:]), **attributes, rounding_mode=rounding)
    if grid.step == 1:
        assert (ends.min(), ends.max()) == (grid.low, grid.high)
