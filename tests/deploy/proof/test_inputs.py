"""Inputs made to hurt: their shapes, their values, their seeds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import lowbit
from deploy_nets import images, trained
from lowbit.deploy import adversarial_inputs, observe


def model_of(spec: str, bits: int, *shape: int) -> nn.Module:
    """A low-bit layer that reads the input itself."""
    net = lowbit.convert(nn.Linear(shape[-1], 3), activations=bits, activation_quantizer=spec, keep_float=())
    net(torch.rand(shape))
    return net.eval()


@pytest.mark.parametrize("shape", [(5,), (1, 4), (3, 4), (2, 3, 4), (2, 1, 3, 4), (7, 1, 1, 1, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_any_float_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    model = model_of("lsq", 2, *shape).to(dtype)
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    cases = adversarial_inputs(model, example)
    alone, together = (cases, []) if len(shape) < 2 else (cases[:-1], cases[-1:])
    for case in alone:
        (x,) = case.inputs
        assert x.dtype == dtype
        assert tuple(x.shape) == (shape if len(shape) < 2 else (1, *shape[1:])), case.name
        assert x.isfinite().all(), case.name
        model(x)
    for case in together:
        assert torch.equal(case.inputs[0], torch.cat([case.inputs[0] for case in alone]))


def test_the_cases_are_what_their_names_say() -> None:
    cases = {case.name: case.inputs[0] for case in adversarial_inputs(trained(activations=2), images())}
    largest = images().abs().max()
    assert not cases["all 0"].any()
    assert not cases["all 0"].signbit().any()
    assert not cases["all −0"].any()
    assert cases["all −0"].signbit().all()
    assert (cases["all 1"] == 1).all()
    assert (cases["all the largest value"] == largest).all()
    assert (cases["all minus extreme"] < -1e5).all()
    assert torch.equal(cases["alternating signs"].reshape(-1)[:3], torch.stack([largest, -largest, largest]))
    assert 0 < cases["tiny, alternating signs"].abs().max() < 1e-29
    assert (cases["a ramp"].reshape(-1).diff() > 0).all()
    assert cases["one value, the rest 0"].count_nonzero() == 1
    assert cases["wide noise"].abs().max() > 10 * largest


@pytest.mark.parametrize(("spec", "bits"), [("unsigned", 2), ("lsq", 3), ("sign", 1)])
def test_ties_of_the_first_quantizer_are_hit_and_straddled(spec: str, bits: int) -> None:
    model = model_of(spec, bits, 4, 400)
    (x,) = next(c.inputs for c in adversarial_inputs(model, torch.rand(4, 400)) if c.name == "on ties, in order")
    quantizer = model.input_quantizer.quantizer
    z = (quantizer.normalize(x, quantizer.scale(x)) if spec != "sign" else x).detach()
    if spec == "sign":
        assert {-1, 0, 1} <= set(z.sign().unique().tolist())
        return
    for code in range(quantizer.grid.low, quantizer.grid.high):
        near = z[(z - code - 0.5).abs() < 1e-5]
        assert (near == code + 0.5).any()
        assert (near < code + 0.5).any()
        assert (near > code + 0.5).any()
    assert set(observe(model, x).entries[0].value.unique().tolist()) == set(
        range(quantizer.grid.low, quantizer.grid.high + 1)
    )


def test_the_seed_decides_and_the_model_is_left_alone() -> None:
    model = trained(activations=2).train()
    before = copy.deepcopy(model.state_dict())
    first, second, third = (adversarial_inputs(model, images(), seed) for seed in (3, 3, 4))
    assert all(torch.equal(a.inputs[0], b.inputs[0]) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a.inputs[0], b.inputs[0]) for a, b in zip(first, third, strict=True))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor, factor: float) -> Tensor:
        return self.fc(torch.where(mask[..., None], self.table(tokens).sum(1) * factor + x, x)[:, 0])


def test_integers_are_permuted_truth_values_and_others_stay() -> None:
    model = lowbit.convert(Mixed(), keep_float=())
    tokens = torch.tensor([[0, 1, 2], [3, 4, 4]])
    mask = torch.tensor([[True], [False]])
    cases = adversarial_inputs(model, (torch.randn(2, 4), tokens, mask, 2.0))
    drawn = set()
    for case in cases[:-1]:
        x, given, kept, factor = case.inputs
        assert x.shape == (1, 4)
        assert given.shape == (1, 3)
        assert given.dtype == tokens.dtype
        assert set(given.unique().tolist()) <= {0, 1, 2, 3, 4}
        assert torch.equal(kept, mask[:1])
        assert factor == 2.0
        drawn.add(tuple(given.reshape(-1).tolist()))
        model(*case.inputs)
    assert len(drawn) > 3
    assert cases[-1].inputs[1].shape == (len(cases) - 1, 3)
    model(*cases[-1].inputs)


def test_a_model_without_quantized_activations_and_an_example_of_zeros() -> None:
    model = lowbit.convert(nn.Linear(4, 2), keep_float=())
    for case in adversarial_inputs(model, torch.zeros(2, 4)):
        assert case.inputs[0].isfinite().all()
