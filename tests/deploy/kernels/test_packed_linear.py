"""Linear layers with few-bit weights and float inputs, on the kernels."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import lowbit
from lowbit.deploy.kernels.loader import instruction_sets
from lowbit.deploy.kernels.packed_linear import PackedLinear, packs

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="lowbit was installed without its kernels")
QUANTIZERS = {
    1: ("sign", "sign(scale=mean-abs, granularity=channel)"),
    2: ("lsq", "ternary", "uniform"),
    3: ("lsq", "uniform(scale=max-abs)"),
    4: ("lsq(granularity=channel)", "uniform"),
}
CASES = [(bits, quantizer) for bits, quantizers in QUANTIZERS.items() for quantizer in quantizers]


def trained(bits: int, quantizer: str, inputs: int = 70, outputs: int = 45, bias: bool = True) -> nn.Module:
    torch.manual_seed(bits)
    model = lowbit.convert(nn.Linear(inputs, outputs, bias=bias), bits, quantizer=quantizer, keep_float=())
    lowbit.calibrate(model, torch.randn(8, inputs))
    return model.eval()


@pytest.mark.parametrize(("bits", "quantizer"), CASES)
@pytest.mark.parametrize("rows", [(1,), (5,), (2, 3, 4), ()])
def test_the_result_is_that_of_torch_up_to_rounding(bits: int, quantizer: str, rows: tuple[int, ...]) -> None:
    model = trained(bits, quantizer, bias=bits != 3)
    compiled = lowbit.compile(model, threads=2)
    assert any(isinstance(module, PackedLinear) for module in compiled.modules())
    x = torch.randn(*rows, 70)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-4)


def test_an_example_does_not_depend_on_its_batch_or_on_threads() -> None:
    model = trained(2, "lsq", 513, 131)
    x = torch.randn(9, 513)
    expected = lowbit.compile(model, threads=1)(x)
    for threads in (1, 2, 3):
        compiled = lowbit.compile(model, threads=threads)
        assert torch.equal(compiled(x), expected)
        assert torch.equal(torch.cat([compiled(row[None]) for row in x]), expected)


def test_inputs_with_gaps_and_copies() -> None:
    compiled = lowbit.compile(trained(1, "sign"), threads=1)
    x = torch.randn(70, 6)
    expected = compiled(x.T.contiguous())
    assert torch.equal(compiled(x.T), expected)
    assert torch.equal(copy.deepcopy(compiled)(x.T), expected)
    assert torch.equal(pickle.loads(pickle.dumps(compiled))(x.T), expected)


def test_a_wrong_number_of_features_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"71 features .* takes 70"):
        lowbit.compile(trained(1, "sign"), threads=1)(torch.randn(2, 71))


def test_a_shared_layer_is_replaced_everywhere() -> None:
    layer = nn.Linear(6, 6)
    model = lowbit.convert(nn.Sequential(layer, nn.ReLU(), layer), 1, keep_float=()).eval()
    compiled = lowbit.compile(model, threads=1)
    x = torch.randn(3, 6)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(
    "options",
    [
        {"weights": 5},
        {"weights": 1, "activations": 2},
        {"weights": 1, "quantizer": "sign(scale=mean-abs, granularity=group:2)"},
    ],
)
def test_other_layers_are_left(options: dict[str, object]) -> None:
    assert not packs(lowbit.convert(nn.Linear(8, 8), keep_float=(), **options))  # type: ignore[arg-type]
