"""Quantizers as specs that build them again; modules as plain values."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

import lowbit
from deploy_nets import float_net
from lowbit._errors import ArtefactError
from lowbit.deploy.files.describe import Module, Quantizer, agree, build, describe, from_json, spec_of
from lowbit.quantizers import QUANTIZERS, AbstractQuantizer, build_quantizer

EXAMPLES = [example for _, cls in QUANTIZERS.items() for example in cls.examples()]


def described(quantizer: AbstractQuantizer) -> Quantizer:
    grid = quantizer.grid
    return Quantizer(spec_of(quantizer), (grid.low, grid.high, grid.step))


@pytest.mark.parametrize("quantizer", EXAMPLES, ids=lambda q: f"{type(q).__name__}")
def test_every_registered_quantizer_is_built_again(quantizer: AbstractQuantizer) -> None:
    built = build(described(quantizer), (8, 4, 2))
    assert type(built) is type(quantizer)
    assert built.scaling.policy == quantizer.scaling.policy
    assert built.granularity == quantizer.granularity
    x = torch.randn(8, 4, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(built.eval()(x), copy.deepcopy(quantizer).eval()(x))


@pytest.mark.parametrize(
    ("spec", "bits", "text"),
    [
        ("sign", 1, "sign"),
        ("sign(scale=mean-abs, granularity=channel)", 1, "sign(scale=mean-abs, granularity=channel)"),
        ("lsq(granularity=group:4)", 4, "lsq(bits=4, granularity=group:4)"),
        ("ternary(threshold=0.6)", 2, "ternary(threshold=0.6)"),
        ("uniform(transform=tanh)", 3, "uniform(bits=3, transform=tanh)"),
        ("staircase(resolution=0.25)", 2, "staircase(bits=2, resolution=0.25)"),
        ("staircase(scale=learned)", 2, "staircase(bits=2, scale=learned)"),
        ("sign(detach=False)", 1, "sign"),
    ],
)
def test_specs_say_what_is_not_usual(spec: str, bits: int, text: str) -> None:
    context: dict[str, Any] = {} if spec.startswith("staircase") else {"shape": (8, 4), "axis": 0, "batched": False}
    assert spec_of(build_quantizer(spec, bits, **context)) == text


def test_another_axis_is_named() -> None:
    quantizer = build_quantizer("sign(scale=mean-abs, granularity=channel)", 1, axis=1)
    assert spec_of(quantizer) == "sign(scale=mean-abs, granularity=channel, axis=1)"
    assert build(described(quantizer), (2, 3)).granularity == quantizer.granularity


def test_a_resolution_may_differ_in_its_last_bits() -> None:
    first = Quantizer("staircase(bits=2, resolution=0.6507697039968403)", (0, 3, 1))
    assert agree(first, Quantizer("staircase(bits=2, resolution=0.6507697039968401)", (0, 3, 1)))
    assert not agree(first, Quantizer("staircase(bits=2, resolution=0.65076)", (0, 3, 1)))
    assert not agree(first, None)
    assert agree(None, None)


@pytest.mark.parametrize(
    ("spec", "grid", "message"),
    [
        ("foo", (0, 1, 1), "cannot be built: unknown quantizer 'foo'"),
        ("lsq(bits=99999999)", (0, 1, 1), "a width that 'lsq' does not offer"),
        ("lsq(bits=True)", (0, 1, 1), "a width"),
        ("lsq(bits=[1])", (0, 1, 1), "cannot be built|a width"),
        ("lsq(shape=3)", (0, 1, 1), "cannot be built"),
        ("sign(scale=mean-abs, granularity=group:4, axis=9)", (-1, 1, 2), "the header is damaged"),
        ("sign(scale='none')", (-1, 1, 2), "is not described as lowbit does it"),
        ("sign", (0, 1, 1), "has the codes -1 to 1 in steps of 2 here, but 0 to 1 in the file"),
        ("(" * 499, (0, 1, 1), "cannot be built"),
        ("a" * 501, (0, 1, 1), "has 501 characters"),
    ],
)
def test_specs_that_are_wrong(spec: str, grid: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        build(Quantizer(spec, grid), (8, 4, 2))


def test_modules_survive_json() -> None:
    model = lowbit.convert(float_net(), weights=3, activations=2)
    found = describe(model)
    assert {name: module.kind for name, module in found.items()} == {
        "0": "Conv2d",
        "1": "ExactBatchNorm2d",
        "3": "QuantConv2d",
        "4": "ExactBatchNorm2d",
        "6": "QuantConvTranspose2d",
        "9": "QuantLinear",
        "11": "Linear",
    }
    weight, input = Quantizer("lsq(bits=3)", (-4, 3, 1)), Quantizer("unsigned(bits=2)", (0, 3, 1))
    geometry = {"stride": 2, "padding": 1, "groups": 4}
    assert found["3"] == Module("QuantConv2d", geometry, (12, 2, 3, 3), "float32", weight, input)
    for module in found.values():
        assert from_json(json.loads(json.dumps(module.to_json()))) == module


def test_geometry_with_several_values_and_texts() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=(1, 2), padding=(1, 0), padding_mode="reflect"),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.GroupNorm(2, 2, eps=1e-3),
        nn.LSTM(2, 2, bidirectional=True),
        nn.MultiheadAttention(4, 2),
    )
    found = describe(net)
    assert found["0"].geometry == {"stride": [1, 2], "padding": [1, 0], "padding_mode": "reflect"}
    assert found["1"].geometry == {"padding": "same"}
    assert found["2"].geometry == {"num_groups": 2, "eps": 1e-3}
    assert found["3"].geometry["bidirectional"] is True
    assert found["4"].geometry["num_heads"] == 2


SOUND: dict[str, Any] = {
    "kind": "QuantLinear",
    "shape": [2, 3],
    "dtype": "float32",
    "weight": {"quantizer": "sign", "grid": [-1, 1, 2]},
}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": None},
        {"kind": 3},
        {"geometry": []},
        {"shape": "2"},
        {"shape": [-1, 3]},
        {"shape": [2.0, 3]},
        {"shape": [True, 3]},
        {"shape": [2**70]},
        {"shape": None},
        {"dtype": None},
        {"dtype": 3},
        {"weight": "sign"},
        {"weight": {"quantizer": "sign"}},
        {"weight": {"quantizer": 3, "grid": [-1, 1, 2]}},
        {"weight": {"quantizer": "sign", "grid": [-1, 1]}},
        {"weight": {"quantizer": "sign", "grid": "abc"}},
        {"weight": None},
        {"more": 1},
        {"kind": "Linear"},
        {"kind": "QuantReLU"},
    ],
)
def test_descriptions_that_are_wrong(change: dict[str, Any]) -> None:
    assert from_json(SOUND).weight == Quantizer("sign", (-1, 1, 2))
    with pytest.raises(ArtefactError, match="the header is damaged"):
        from_json({**SOUND, **change})


def test_a_description_that_is_none() -> None:
    with pytest.raises(ArtefactError, match="the header is damaged"):
        from_json([])
