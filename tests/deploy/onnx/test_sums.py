"""Sums over whole numbers where float32 ends: one layer at a time, without tracing."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("qonnx")
pytest.importorskip("torch.onnx.ops")

import onnx
from onnx import TensorProto, helper

from lowbit import ExportError, calibrate, convert
from lowbit.deploy.onnx.dialects import DIALECTS
from lowbit.deploy.onnx.file import Traced, write
from lowbit.deploy.onnx.parts import IntegerLayer
from lowbit.deploy.onnx.runner import run
from lowbit.deploy.onnx.sums import integer_obstacle, is_exact
from lowbit.deploy.onnx.twins import DOMAIN


def alone(layer: nn.Module, shape: tuple[int, ...], opset: int = 21) -> Traced:
    """What the trace of a model that is one layer looks like."""
    with torch.no_grad():
        part = IntegerLayer.of(layer.requires_grad_(False), "layer")
    node = helper.make_node(
        DOMAIN + ".Part", ["input"], ["output"], domain=DOMAIN, part=0, call="layer", rank=len(shape)
    )
    batch = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape[1:]])
    result = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "graph", [batch], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return Traced(model, [part], opset)


def eight_bits(layer: nn.Module, example: Tensor, quantizer: str = "lsq(scale=max-abs)", **options: Any) -> nn.Module:
    wanted = {"weights": 8, "activations": 8, "quantizer": quantizer, "keep_float": (), **options}
    result = convert(nn.Sequential(layer), **wanted)
    calibrate(result, example)
    return result.eval()[0]


def linear(inputs: int, weight: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(inputs, 3)
    if weight is not None:
        layer.weight.data.copy_(weight)
    return layer


LARGE = {  # each past 2²⁴: 8 bits on both sides, weights and inputs of one sign
    "linear": (lambda: linear(1200), (3, 1200)),
    "one output": (lambda: nn.Linear(1200, 1, bias=False), (3, 1200)),
    "convolution": (lambda: nn.Conv2d(100, 3, 3, padding=1), (2, 100, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(180, 4, 3, groups=2), (2, 180, 4, 4)),
}


@pytest.mark.parametrize(("kind", "quantizer"), list(product(LARGE, ("lsq(scale=max-abs)", "uniform"))))
def test_sums_past_2_to_the_24_are_rounded_once(kind: str, quantizer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shape = LARGE[kind]
    raw = make()
    raw.weight.data = torch.rand_like(raw.weight) + 0.5  # of one sign: the sums get as large as they can
    example = torch.rand(shape)
    layer = eight_bits(raw, example, quantizer)
    inputs = torch.cat([example, torch.ones(1, *shape[1:])])
    expected = layer(inputs)
    traced = alone(layer, shape)
    assert traced.parts[0].reach > 2**24
    for (to, form), dialect in DIALECTS.items():
        if to == "qonnx":  # needs the shapes that only a trace tells
            continue
        path = tmp_path / f"{form}.{to}"
        onnx.save(write(traced, dialect)[0], path)
        seen, _ = run(path, inputs)
        assert torch.equal(seen["layer:output"], expected.detach()), form


@pytest.mark.parametrize("form", ["int8", "int4", "float"])
def test_a_single_factor_is_not_multiplied_into_the_product(form: str, tmp_path: Path) -> None:
    # ONNX Runtime would make it alpha of the matrix product, which it multiplies into each block of 128 or so inputs.
    torch.manual_seed(0)
    example = torch.rand(3, 700)
    layer = eight_bits(nn.Linear(700, 1, bias=False), example, "lsq", weights=4, activations=4)
    onnx.save(write(alone(layer, (3, 700)), DIALECTS["onnx", form])[0], tmp_path / "a.onnx")
    inputs = torch.rand(50, 700)
    assert torch.equal(run(tmp_path / "a.onnx", inputs)[1][0], layer(inputs).detach())


def test_weights_that_could_saturate_pairs_are_stored_as_uint8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.rand(3, 64)
    for bits, kind in ((8, TensorProto.UINT8), (7, TensorProto.INT8), (2, TensorProto.INT8)):
        layer = eight_bits(nn.Linear(64, 5), example, weights=bits)
        file, _ = write(alone(layer, (3, 64)), DIALECTS["onnx", "int8"])
        (weight,) = (i for i in file.graph.initializer if i.name == "layer.weight")
        assert weight.data_type == kind
        onnx.save(file, tmp_path / "a.onnx")
        assert torch.equal(run(tmp_path / "a.onnx", example)[1][0], layer(example).detach())


def test_what_no_kernel_can_sum_exactly_is_an_error() -> None:
    raw = nn.ConvTranspose2d(3000, 1, 3)
    raw.weight.data.fill_(1.0)
    layer = eight_bits(raw, torch.rand(2, 3000, 2, 2))
    traced = alone(layer, (2, 3000, 2, 2))
    assert integer_obstacle(traced.parts[0])
    assert not is_exact(traced.parts[0])
    for dialect in DIALECTS.values():
        with pytest.raises(ExportError, match="layer 'layer': its sums reach"):
            write(traced, dialect)


def test_where_two_parts_are_not_enough_an_integer_kernel_steps_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    raw = nn.Conv2d(3000, 2, 3)
    raw.weight.data = torch.rand_like(raw.weight) + 1
    example = torch.rand(2, 3000, 3, 3)
    layer = eight_bits(raw, example)
    traced = alone(layer, (2, 3000, 3, 3))
    assert not is_exact(traced.parts[0])
    file, how = write(traced, DIALECTS["onnx", "float"])
    assert "integer kernel" in how["layer"]
    onnx.save(file, tmp_path / "a.onnx")
    assert torch.equal(run(tmp_path / "a.onnx", example)[1][0], layer(example).detach())


def test_signs_at_the_border() -> None:
    """The real number 0 around an image of signs: its byte is the zero point, 1."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    layer = eight_bits(nn.Conv2d(3, 2, 3, padding=1), x, "sign", weights=1, activations=1, activation_quantizer="sign")
    part = IntegerLayer.of(layer, "layer")
    sums = F.conv2d(torch.where(x >= 0, 1.0, -1.0), part.whole.detach(), padding=1)
    expected = sums * part.multiplier.detach().reshape(-1, 1, 1) + layer.bias.detach().reshape(-1, 1, 1)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize(
    ("form", "opset", "bits"), [("int8", 21, 8), ("int4", 21, 4), ("int4", 25, 2), ("float", 21, 32)]
)
def test_weights_take_the_bits_of_the_form(form: str, opset: int, bits: int) -> None:
    torch.manual_seed(0)
    layer = eight_bits(nn.Linear(256, 256), torch.rand(2, 256), weights=2)
    file, _ = write(alone(layer, (2, 256), opset), DIALECTS["onnx", form])
    weights = 256 * 256 * bits // 8
    assert weights < len(file.SerializeToString()) < weights + 4000
