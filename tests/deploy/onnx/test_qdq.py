"""Fused int8 kernels against the chains they replace: the same codes, in real sessions with default options."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from lowbit.deploy.onnx.qdq import Fusion, fuse  # noqa: E402
from onnx_layer import SINGLE, Array, Chain, Net, model_of, run, single, u8  # noqa: E402


def check(net: Net, *inputs: Array) -> Fusion:
    """The codes stay the same for these inputs; the layer must be fused."""
    model = net.model()
    before = model.SerializeToString()
    fused, [fusion] = fuse(model)
    assert model.SerializeToString() == before
    assert fusion.fused, fusion.reason
    assert not {node.op_type for node in fused.graph.node} & {"ConvInteger", "MatMulInteger", "Cast", "Where"}
    for x in inputs:
        np.testing.assert_array_equal(run(fused, x), run(model, x))
    np.testing.assert_array_equal(run(fused, inputs[0], plain=True), run(model, inputs[0], plain=True))
    return fusion


def optimised(net: Net, x: Array, folder: Path) -> Counter[str]:
    """What the runtime makes of the fused model: how often each operator."""
    run(fuse(net.model())[0], x, folder / "optimised.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def hard_inputs(shape: tuple[int, ...], low: int, high: int, zero: int) -> list[Array]:
    """Random codes, codes at the ends, all at the zero point, all at the largest, all at the smallest."""
    draw = rng(len(shape))
    return [
        draw.integers(low, high + 1, shape).astype(np.uint8),
        draw.choice(np.array([low, high], np.uint8), shape),
        *(np.full(shape, code, np.uint8) for code in (zero, high, low)),
    ]


def signed_normal(channels: int, spread: float) -> tuple[list[float], list[float]]:
    """Batch normalisation with both signs, a zero slope, and an almost flat channel."""
    draw = rng(channels)
    slope = draw.uniform(0.3, 1.5, channels) * draw.choice([-1, 1], channels) * spread
    slope[:2] = 0, 1e-6 * spread
    return slope.tolist(), draw.normal(size=channels).tolist()


CONVOLUTIONS = {
    "3x3": ((16, 8, 3, 3), (2, 8, 9, 7), {"pads": [1, 1, 1, 1]}),
    "wide, for the packed kernels": ((64, 64, 3, 3), (1, 64, 6, 6), {"pads": [1, 1, 1, 1]}),
    "stride, dilation, one-sided padding": (
        (8, 3, 3, 3),
        (2, 3, 11, 11),
        {"pads": [2, 0, 1, 3], "strides": [2, 1], "dilations": [1, 2]},
    ),
    "1x1": ((20, 12, 1, 1), (3, 12, 5, 5), {}),
    "groups": ((12, 4, 3, 3), (1, 12, 6, 6), {"group": 3, "pads": [1, 1, 1, 1]}),
    "depthwise": ((16, 1, 3, 3), (1, 16, 8, 8), {"group": 16, "pads": [1, 1, 1, 1]}),
    "1d": ((10, 6, 5), (2, 6, 17), {"pads": [2, 2]}),
    "3d": ((6, 4, 3, 3, 3), (1, 4, 5, 5, 5), {"pads": [1] * 6}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_convolutions_become_one_kernel(name: str, bits: int, tmp_path: Path) -> None:
    size, shape, attributes = CONVOLUTIONS[name]
    last = 2**bits - 1
    weight = rng(bits).integers(-(2 ** (bits - 1)), 2 ** (bits - 1) + 1, size).astype(np.int8)
    weight[-1] = 0
    spread = 1 / np.sqrt(np.prod(size[1:]) * last)
    net = Net(
        weight,
        product=(0.01 * rng(1).uniform(1, 2, size[0])).tolist(),
        bias=rng(2).normal(size=size[0]).tolist(),
        normal=signed_normal(size[0], 100 * spread),
        relu=True,
        reciprocal=1.7 * last,
        clip=(0, last),
        x_clip=(0, last),
        shape=("batch", *shape[1:]),
        attributes=attributes,
    )
    fusion = check(net, *hard_inputs(shape, 0, last, 0))
    assert (fusion.reason, fusion.channels, fusion.layer) == ("QLinearConv", size[0], "sums_node")
    left = optimised(net, hard_inputs(shape, 0, last, 0)[0], tmp_path)
    assert left["QLinearConv"] == 1
    assert set(left) <= {"QLinearConv", "Clip", "Transpose"}


@pytest.mark.parametrize("shape", [(5, 40), (2, 3, 40), (2, 3, 2, 40)])
@pytest.mark.parametrize("dynamic", [True, False])
def test_linear_layers_become_one_kernel(shape: tuple[int, ...], dynamic: bool, tmp_path: Path) -> None:
    net = Net(
        rng().integers(-2, 2, (40, 24)).astype(np.int8),
        product=0.013,
        bias=rng(1).normal(size=24).tolist(),
        normal=signed_normal(24, 1),
        shape=("batch", *shape[1:]) if dynamic else shape,
        x_zero=7,
        zero=8,
    )
    assert check(net, *hard_inputs(shape, 0, 15, 7)).reason == "QGemm"
    left = optimised(net, hard_inputs(shape, 0, 15, 7)[0], tmp_path)
    assert left["QGemm"] == 1
    assert set(left) <= {"QGemm", "Clip", "Reshape"}


@pytest.mark.parametrize("zeros", [(0, 0), (3, 5), (15, 10)])
@pytest.mark.parametrize("end", ["round", "sign", "ceil"])
def test_every_input_of_a_small_layer(zeros: tuple[int, int], end: str) -> None:
    """All 16³ inputs, for channels with every sign of weights and slopes."""
    grid = np.array(list(itertools.product(range(16), repeat=3)), np.uint8).T.reshape(1, 3, 64, 64)
    weight = np.array(list(itertools.product((-2, -1, 0, 1, 3), repeat=3)), np.int8)[:, :, None, None]
    net = Net(
        weight,
        product=0.1,
        bias=rng(3).normal(size=125).tolist(),
        normal=signed_normal(125, 1),
        reciprocal=1.3,
        x_zero=zeros[0],
        zero=zeros[1],
        end=end,
        shape=("batch", 3, 64, 64),
    )
    check(net, grid)


@pytest.mark.parametrize("product", [0.5, 0.25, 0.125, 1.5, 2.0])
@pytest.mark.parametrize("zero", [0, 7, 8])
@pytest.mark.parametrize("bias", [0.0, 0.5, -1.0, 0.25])
def test_ties_go_where_the_chain_sends_them(product: float, zero: int, bias: float) -> None:
    """Steps that are powers of two: half of the sums fall exactly between two codes."""
    grid = np.array(list(itertools.product(range(16), repeat=2)), np.uint8).T.reshape(1, 2, 16, 16)
    weight = np.array([[1, 1], [1, -1], [-1, -1], [2, 1], [0, 0]], np.int8)[:, :, None, None]
    signs = ([1.0, -1.0, -1.0, 1.0, 1.0], [0.0] * 5)
    net = Net(weight, product=product, bias=[bias] * 5, normal=signs, zero=zero, shape=(1, 2, 16, 16))
    check(net, grid)


@pytest.mark.parametrize("clip", [None, (3, 11), (0, 1)])
def test_the_ends_of_the_codes(clip: tuple[int, int] | None) -> None:
    """Without a Clip the codes saturate at 0 and 255; with one, at its ends, also where ReLU is higher than those."""
    weight = rng().integers(-1, 2, (6, 4, 1, 1)).astype(np.int8)
    for relu, zero in itertools.product((False, True), (0, 5)):
        net = Net(weight, product=6.1, clip=clip, relu=relu, zero=zero, shape=(4, 4, 8, 8))
        check(net, *hard_inputs((4, 4, 8, 8), 0, 15, 0))


def test_weights_with_a_zero_point() -> None:
    weight = rng().integers(126, 131, (6, 4, 3, 3)).astype(np.uint8)
    net = Net(weight, weight_zero=np.array(128, np.uint8), product=0.2, shape=(1, 4, 8, 8))
    check(net, *hard_inputs((1, 4, 8, 8), 0, 15, 0))


def test_long_sums_over_their_whole_reach() -> None:
    """Inputs that lead each channel from its smallest to its largest sum in steps of one code."""
    weight = rng().choice(np.array([-1, 1], np.int8), (4, 300))
    steps = np.clip(np.arange(4501)[:, None] - 15 * np.arange(300), 0, 15)
    batch = np.concatenate([np.where(row > 0, steps, 15 - steps) for row in weight]).astype(np.uint8)
    net = Net(
        weight.T.copy(), product=0.01, normal=([0.9, -1.1, 0.3, 1.0], [1.0, -0.3, 4.0, 2.0]), shape=("batch", 300)
    )
    check(net, batch)


def test_sums_beyond_the_whole_numbers_of_float32() -> None:
    """Around 20 million the chain's conversion to float32 rounds to even numbers."""
    weight = np.full((1601, 1), 32, np.int8)
    weight[-1] = 1
    batch = np.zeros((256, 1601), np.uint8)
    batch[:, :1225], batch[:, 1225:1600], batch[:, -1] = 255, 255, np.arange(256)
    batch[:, 1300:1310] = 0
    middle = float(batch[0].astype(int) @ weight[:, 0].astype(int))
    net = Net(weight, product=1 / 16, bias=[-middle / 16], x_clip=None, shape=("batch", 1601))
    check(net, batch)


def test_layers_in_a_row_and_a_residual_path() -> None:
    """Two layers become kernels; the one whose sums are added to real numbers stays, and so do its codes."""
    draw, chain, x = rng(), Chain(), "x"
    for layer in range(4):
        weight, product = draw.integers(-1, 2, (8, 8, 3, 3)).astype(np.int8), draw.uniform(0.02, 0.06, (8, 1, 1))
        chain.add("ConvInteger", [x, weight, u8(0)], f"n{layer}", pads=[1] * 4)
        chain.add("Cast", [f"n{layer}"], f"f{layer}", to=TensorProto.FLOAT)
        value = chain.add("Mul", [f"f{layer}", product.astype(SINGLE)], f"p{layer}")
        if layer == 1:
            value = chain.add("Mul", ["p0", "p1"], "sum")
        chain.add("QuantizeLinear", [value, single(1), u8(0)], f"q{layer}")
        x = chain.add("Clip", [f"q{layer}", u8(0), u8(7)], f"c{layer}" if layer < 3 else "y")
        if layer == 2:
            x = chain.add("MaxPool", [x], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    model = model_of(chain.nodes, chain.tensors, (1, 8, 12, 12))
    fused, report = fuse(model)
    assert [entry.fused for entry in report] == [False, False, True, True]
    assert report[0].reason == "the result of its Mul is needed elsewhere too"
    assert report[1].reason == "its values meet a tensor that is not a constant"
    assert Counter(node.op_type for node in fused.graph.node)["ConvInteger"] == 2
    assert {"n2_1", "p2_1", "n3_1"}.isdisjoint(tensor.name for tensor in fused.graph.initializer)
    for x_value in hard_inputs((1, 8, 12, 12), 0, 7, 0):
        np.testing.assert_array_equal(run(fused, x_value), run(model, x_value))


@pytest.mark.parametrize("pool", ["", "before", "after"])
@pytest.mark.parametrize("end", ["round", "sign", "ceil"])
@pytest.mark.parametrize("flat", [False, True])
def test_pooling_and_reshaping_work_on_codes_instead(pool: str, end: str, flat: bool, tmp_path: Path) -> None:
    """Max-pooling behind the integers stays behind them, also where it comes before a normalisation with positive α."""
    weight = rng().integers(-1, 2, (16, 4, 3, 3)).astype(np.int8)
    slope, offset = signed_normal(16, 1)
    slope = np.abs(slope).tolist() if pool == "before" else slope
    shape, attributes = (2, 4, 10, 10), {"pads": [1] * 4}
    net = Net(
        weight, 0.1, normal=(slope, offset), zero=3, end=end, shape=shape, attributes=attributes, pool=pool, flat=flat
    )
    check(net, *hard_inputs(shape, 0, 15, 0))
    left = optimised(net, hard_inputs(shape, 0, 15, 0)[0], tmp_path)
    assert set(left) <= {"QLinearConv", "Clip", "Transpose", "MaxPool", "NhwcMaxPool", "Flatten", "Reshape"}


@pytest.mark.parametrize("slope", [[1.0, -1.0], [0.0, -0.5]])
def test_pooling_before_a_falling_channel_stays(slope: list[float]) -> None:
    """The largest value then has the smallest code."""
    net = small(normal=(slope, [1.0, 2.0]), pool="before")
    fused, [fusion] = fuse(net.model())
    assert not fusion.fused
    assert "fall" in fusion.reason
    assert fused == net.model()


def small(**options: object) -> Net:
    return replace(Net(np.ones((2, 3, 1, 1), np.int8), shape=(1, 3, 4, 4)), **options)


def changed(change: str) -> onnx.ModelProto:
    """A model with something about it that must not be fused."""
    model = small().model()
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}

    def put(name: str, value: float | Array) -> None:
        tensors[name].CopyFrom(numpy_helper.from_array(np.array(value, SINGLE), name))

    if change == "scale":
        put("unclipped_1", 0.5)
    elif change == "constant input":
        graph.input.append(helper.make_tensor_value_info("product_1", TensorProto.FLOAT, []))
    elif change == "across columns":
        put("product_1", np.ones((1, 4)))
    elif change == "overflow":
        put("product_1", 3e38)
        put("scaled_1", 0)
    elif change == "not monotone":
        product = next(node for node in graph.node if node.op_type == "Mul")
        product.op_type = "Mod"
        product.attribute.append(helper.make_attribute("fmod", 1))
    elif change == "output":
        graph.output.append(helper.make_tensor_value_info("real", TensorProto.FLOAT, [1, 2, 4, 4]))
    return model


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("scale", "scale other than 1"),
        ("constant input", "not a constant"),
        ("across columns", "more than the channels"),
        ("overflow", "overflow"),
        ("not monotone", "go through Mod"),
        ("output", "needed elsewhere"),
    ],
)
def test_what_stays_as_it_is(change: str, reason: str) -> None:
    model = changed(change)
    fused, [fusion] = fuse(model)
    assert not fusion.fused
    assert reason in fusion.reason
    assert fused == model


def test_weights_that_would_saturate_sixteen_bits_stay() -> None:
    """8-bit weights with 8-bit codes: kernels without VNNI would give other sums."""
    net = small(weight=np.full((2, 3, 1, 1), 100, np.int8), x_clip=None, clip=(0, 1))
    _, [fusion] = fuse(net.model())
    assert not fusion.fused
    assert "16-bit" in fusion.reason
    check(replace(net, x_clip=(0, 127)), *hard_inputs((1, 3, 4, 4), 0, 127, 0))


def test_one_channel_without_a_solution_keeps_the_layer() -> None:
    """Weights that leave no room for a factor, and 256 codes on an odd slope."""
    weight = np.concatenate([np.ones((1, 9, 1, 1)), np.full((1, 9, 1, 1), 100)]).astype(np.int8)
    weight[1, :4, 0, 0] = 1
    net = Net(weight, product=0.037, bias=[0.0, 0.123], clip=None, shape=(1, 9, 4, 4))
    _, [fusion] = fuse(net.model())
    assert (fusion.fused, fusion.channels, fusion.factor) == (False, 2, 0)
    assert "channel 1 of 2" in fusion.reason
