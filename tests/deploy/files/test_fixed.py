"""Fixed codes stand in for the quantizer that made them."""

from __future__ import annotations

import copy

import pytest
import torch

from lowbit._errors import ArtefactError
from lowbit.deploy.files.fixed import FixedCodes
from lowbit.estimators import build_estimator
from lowbit.layers import FakeQuantize
from lowbit.quantizers import QUANTIZERS, AbstractQuantizer

WEIGHTS = [example for _, cls in QUANTIZERS.items() if cls.signed for example in cls.examples()]


def x() -> torch.Tensor:
    return torch.randn(8, 4, 2, generator=torch.Generator().manual_seed(0))


def fixed(quantizer: AbstractQuantizer) -> FixedCodes:
    quantizer = copy.deepcopy(quantizer).eval()
    return FixedCodes(
        quantizer, quantizer.codes(x()), quantizer.scale(quantizer.granularity.blocks(x())).detach()
    ).eval()


@pytest.mark.parametrize("quantizer", WEIGHTS, ids=lambda q: type(q).__name__)
def test_every_answer_is_the_origins_whatever_is_shown(quantizer: AbstractQuantizer) -> None:
    held, quantizer = fixed(quantizer), copy.deepcopy(quantizer).eval()
    other = torch.zeros(8, 4, 2)
    assert torch.equal(held(other), quantizer(x()))
    assert torch.equal(held.codes(other), quantizer.codes(x()))
    assert held.grid == quantizer.grid
    assert held.integer_grid == quantizer.integer_grid
    assert held.granularity == quantizer.granularity
    assert held.static
    rule = build_estimator("clipped")
    first, second = FakeQuantize(held, rule).eval(), FakeQuantize(quantizer, rule).eval()
    assert torch.equal(first(other), second(x()))
    if "Group" not in type(quantizer.granularity).__name__:
        assert all(torch.equal(a, b) for a, b in zip(first.integers(other), second.integers(x()), strict=True))


def test_training_is_refused_and_stays_refused_until_evaluation() -> None:
    held = fixed(WEIGHTS[0])
    with pytest.raises(ArtefactError, match="holds the codes of its weights but not the latent weights"):
        held.train()
    with pytest.raises(ArtefactError, match=r"call model.eval\(\)"):
        held(x())
    held.eval()(x())


def test_it_is_no_member_that_one_could_ask_for() -> None:
    assert FixedCodes.examples() == []
    assert FixedCodes not in [cls for _, cls in QUANTIZERS.items()]


def test_what_it_gives_may_be_written_to() -> None:
    held = fixed(WEIGHTS[0])
    before = held(x())
    held.discretize(held.normalize(x(), held.scale(x()))).zero_()
    assert torch.equal(held(x()), before)
