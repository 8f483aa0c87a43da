"""Constants and packed weights of an ONNX graph."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, numpy_helper

from lowbit.deploy.onnx.graph import Writer, packed


def test_the_same_numbers_are_stored_once() -> None:
    writer = Writer({}, {"a"}, 21)
    assert writer.constant(np.ones((2, 3), np.float32), "a") == "a_2"  # "a" was taken
    assert writer.constant(np.ones((2, 3), np.float32), "b") == "a_2"
    assert writer.constant(np.ones((3, 2), np.float32), "b") == "b"
    assert writer.constant(np.ones((3, 2), np.int8), "b") == "b_2"
    assert writer.scalar(0.0) != writer.scalar(-0.0)  # other bits
    assert len(writer.constants) == 5


@pytest.mark.parametrize(("bits", "kind"), [(2, TensorProto.INT2), (4, TensorProto.INT4)])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 63])
def test_packed_weights_are_those_that_onnx_reads(bits: int, kind: int, count: int) -> None:
    value = np.random.default_rng(count).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), count)
    tensor = TensorProto(dims=[count], data_type=kind, raw_data=packed(value, bits))
    assert len(tensor.raw_data) == -(-count * bits // 8)
    assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int64), value)


@pytest.mark.parametrize(
    ("opset", "low", "high", "kind"),
    [
        (21, -2, 1, TensorProto.INT4),
        (25, -2, 1, TensorProto.INT2),
        (25, -2, 2, TensorProto.INT4),
        (21, -8, 7, TensorProto.INT4),
        (21, -8, 8, TensorProto.INT8),
        (25, -128, 127, TensorProto.INT8),
    ],
)
def test_weights_take_the_narrowest_type_of_the_opset(opset: int, low: int, high: int, kind: int) -> None:
    writer = Writer({}, set(), opset)
    writer.whole(np.array([low, high]), "weight", narrow=True)
    assert writer.constants[0].data_type == kind
    assert numpy_helper.to_array(writer.constants[0]).astype(int).tolist() == [low, high]
    other = Writer({}, set(), opset)
    other.whole(np.array([low, high]), "weight", narrow=False)
    assert other.constants[0].data_type == TensorProto.INT8
