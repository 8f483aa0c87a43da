"""identity: Bengio et al. 2013, plain straight-through."""

from __future__ import annotations

import pytest
import torch

from lowbit.estimators import build_estimator
from lowbit.quantizers import build_quantizer
from straddling import extremes, gradient, noise


@pytest.mark.parametrize(("quantizer", "bits"), [("sign", 1), ("ternary", 2), ("lsq", 4), ("uniform", 3)])
def test_the_gradient_passes_unchanged_everywhere(quantizer: str, bits: int) -> None:
    staircase = build_quantizer(quantizer, bits)
    z = extremes(staircase.grid, torch.float32)
    grad = noise(z.numel())
    assert torch.equal(gradient(build_estimator("identity"), staircase, z, grad), grad)
