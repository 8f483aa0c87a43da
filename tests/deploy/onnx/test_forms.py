"""Every form against evaluation in PyTorch: the codes of every layer, for every quantizer and kind of layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("qonnx")
pytest.importorskip("torch.onnx.ops")

import onnx

from lowbit.deploy.onnx.dialects import DIALECTS
from lowbit.deploy.onnx.file import trace, write
from lowbit.deploy.onnx.runner import run
from lowbit.deploy.proof.observe import observe
from lowbit.quantizers import QUANTIZERS
from onnx_zoo import Kinds, Paddings, trained

CASES: dict[str, dict[str, Any]] = {
    "w1a1": {"weights": 1, "activations": 1, "activation_quantizer": "sign"},
    "w1a1 scaled": {
        "weights": 1,
        "activations": 1,
        "quantizer": "sign(scale=mean-abs, granularity=channel)",
        "activation_quantizer": "sign(scale=learned)",
        "overrides": {"spread": {"weights": 1, "activations": 1, "quantizer": "sign"}},
    },
    "w2a2, ternary": {
        "weights": 2,
        "activations": 2,
        "overrides": {
            name: {"weights": 2, "activations": 1, "quantizer": "ternary(granularity=channel)"}
            for name in ("grouped", "spread", "hidden")
        },
    },
    "w4a4, signed": {
        "weights": 4,
        "activations": 4,
        "quantizer": "lsq(granularity=channel)",
        "activation_quantizer": "lsq",
    },
    "w8a8": {"weights": 8, "activations": 8},
    "uniform": {
        "weights": 8,
        "activations": 8,
        "quantizer": "uniform",
        "activation_quantizer": "lsq",
        "overrides": {
            name: {"weights": 3, "activations": 3, "quantizer": "uniform(scale=max-abs, granularity=channel)"}
            for name in ("depthwise", "line", "last")
        },
    },
}
NEWER = ("w1a1", "w4a4, signed")  # also tried with the newer opset: 2 and 4 bits in the file


def compare(model: nn.Module, path: Path, inputs: Tensor) -> set[str]:
    """Everything that the file computes equals what the model computes; the keys that the file does not have."""
    seen, outputs = run(path, inputs)
    expected = observe(model, inputs)
    tensors = expected.tensors()
    assert set(seen) <= set(tensors)
    assert not [key for key, value in seen.items() if not torch.equal(value, tensors[key].to(value.dtype))]
    assert all(map(torch.equal, outputs, expected.outputs))
    return set(tensors) - set(seen)


def check_all(model: nn.Module, example: Tensor, folder: Path, opset: int) -> None:
    traced = trace(model, (example,), opset)
    for (to, form), dialect in DIALECTS.items():
        file, _ = write(traced, dialect)
        onnx.checker.check_model(file)
        path = folder / f"{form}.{to}"
        onnx.save(file, path)
        missing = compare(model, path, example[:3]) | compare(model, path, example[3:4])
        assert all(key.endswith(":output") for key in missing)
        assert form == "int8" or not missing  # layers that are fused with what follows have no output of their own


def test_every_quantizer_is_tried() -> None:
    tried = str(CASES) + "unsigned" + "lsq" + "staircase"  # two are defaults, one is in the mixed network below
    assert not [name for name, _ in QUANTIZERS.items() if name not in tried]


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_layer_gives_the_codes_of_evaluation(case: str, tmp_path: Path) -> None:
    torch.manual_seed(list(CASES).index(case))
    example = torch.randn(8, 3, 8, 8)
    check_all(trained(Kinds(), example, **CASES[case]), example, tmp_path, 25 if case in NEWER else 21)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_paddings_shared_layers_and_three_dimensions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(4, 2, 6, 6)
    check_all(trained(Paddings(), example, weights=2, activations=3), example, tmp_path, 21)


def test_layers_that_sum_real_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(8, 3, 8, 8)
    overrides = {
        "first": {"weights": 1, "activations": 32},
        "relu1": {"activations": 3, "activation_quantizer": "staircase"},
        "depthwise": {"weights": 3, "activations": 4, "quantizer": "lsq(granularity=group:9)"},
        "relu2": {"activations": 2, "activation_quantizer": "staircase(scale=learned)"},
        "grouped": {"weights": 3, "activations": 32, "quantizer": "uniform(granularity=group:6)"},
        "spread": {"weights": 32, "activations": 4},
        "hidden": {"weights": 4, "activations": 32, "quantizer": "lsq(granularity=group:5)"},
    }
    model = trained(Kinds(), example, weights=2, activations=2, overrides=overrides)
    traced = trace(model, (example,), 21)
    expected = observe(model, example)
    for (to, form), dialect in DIALECTS.items():
        path = tmp_path / f"{form}.{to}"
        onnx.save(write(traced, dialect)[0], path)
        seen, outputs = run(path, example)
        for entry in expected.entries:
            value = seen[entry.key]
            if entry.what == "codes":  # sums in another order: a code may move where its input is next to a tie
                assert (value != entry.value).float().mean() < 1e-2
                assert (value - entry.value).abs().max() <= 1
            else:
                torch.testing.assert_close(value, entry.value, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs[0], expected.outputs[0], rtol=1e-4, atol=1e-4)
    weights = {i.name: i for i in onnx.load(tmp_path / "int4.onnx").graph.initializer}
    kinds = {name: weights[f"{name}.weight"].data_type for name in ("first", "depthwise", "grouped", "spread")}
    INT4, FLOAT = onnx.TensorProto.INT4, onnx.TensorProto.FLOAT
    # `uniform` divides by N before it multiplies by the scale: where that rounds elsewhere, the values are stored.
    assert kinds == {"first": INT4, "depthwise": INT4, "grouped": kinds["grouped"], "spread": FLOAT}
    assert kinds["grouped"] in (INT4, FLOAT)
