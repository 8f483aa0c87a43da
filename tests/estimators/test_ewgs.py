"""ewgs: Lee et al. 2021, element-wise gradient scaling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowbit._errors import ConfigError
from lowbit.estimators import build_estimator
from lowbit.quantizers import build_quantizer
from straddling import extremes, gradient, noise
from tolerances import assert_close


@pytest.mark.parametrize(("quantizer", "bits"), [("sign", 1), ("lsq", 2), ("lsq", 4), ("unsigned", 3), ("uniform", 2)])
@pytest.mark.parametrize("delta", [0.0, 0.1, 1.0])
def test_against_the_formula(quantizer: str, bits: int, delta: float) -> None:
    staircase = build_quantizer(quantizer, bits)
    grid = staircase.grid
    z = extremes(grid, torch.float64)
    grad = noise(z.numel(), dtype=z.dtype)

    @np.vectorize
    def reference(z: float, code: float, g: float) -> float:
        return g * (1 + delta * np.sign(g) * (z - code)) if grid.low <= z <= grid.high else 0.0

    with np.errstate(invalid="ignore"):
        expected = reference(z.numpy(), staircase.discretize(z).numpy(), grad.numpy())
    assert_close(
        gradient(build_estimator(f"ewgs(delta={delta})"), staircase, z, grad), torch.tensor(expected), "formula"
    )


def test_the_papers_delta_on_the_unit_interval() -> None:
    """There x_n lies in [0, 1] with 2^k levels; ours counts in steps, and the docstring gives the conversion."""
    unsigned = build_quantizer("unsigned", 2)
    x_n = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grad = noise(50, dtype=torch.float64)
    steps, papers_delta = 3, 0.6
    x_q = torch.round(x_n * steps) / steps
    expected = grad * (1 + papers_delta * grad.sign() * (x_n - x_q))
    ours = build_estimator(f"ewgs(delta={papers_delta / steps})")
    assert_close(gradient(ours, unsigned, x_n * steps, grad), expected, "formula")


def test_larger_where_the_step_pushes_away_from_the_code() -> None:
    lsq, ewgs = build_quantizer("lsq", 4), build_estimator("ewgs(delta=0.5)")
    z = torch.tensor([2.0, 2.25, 1.75])  # on the code, above it, below it
    assert gradient(ewgs, lsq, z, torch.ones(3)).tolist() == [1.0, 1.125, 0.875]
    assert gradient(ewgs, lsq, z, -torch.ones(3)).tolist() == [-1.0, -0.875, -1.125]


def test_delta_zero_is_the_clipped_estimator() -> None:
    lsq = build_quantizer("lsq", 3)
    z = extremes(lsq.grid, torch.float32)
    grad = noise(z.numel())
    assert torch.equal(
        gradient(build_estimator("ewgs(delta=0.0)"), lsq, z, grad), gradient(build_estimator("clipped"), lsq, z, grad)
    )


def test_a_negative_delta_is_refused() -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        build_estimator("ewgs(delta=-0.1)")
