"""clipped: Courbariaux et al. 2016 (hardtanh); the same indicator in LSQ and PACT."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowbit._errors import ConfigError
from lowbit.estimators import build_estimator
from lowbit.quantizers import Grid, build_quantizer
from straddling import extremes, gradient, noise

CLIPPED = build_estimator("clipped")


@pytest.mark.parametrize(("quantizer", "bits"), [("sign", 1), ("ternary", 2), ("lsq", 2), ("lsq", 8), ("unsigned", 2)])
@pytest.mark.parametrize("c", [1.0, 1.5])
def test_against_the_formula(quantizer: str, bits: int, c: float) -> None:
    staircase = build_quantizer(quantizer, bits)
    grid = staircase.grid
    z = extremes(grid, torch.float32)
    grad = noise(z.numel())
    formula = np.vectorize(lambda z, g: g if c * grid.low <= z <= c * grid.high else 0.0)
    expected = torch.tensor(formula(z.double().numpy(), grad.double().numpy()), dtype=torch.float32)
    assert torch.equal(gradient(build_estimator(f"clipped(c={c})"), staircase, z, grad), expected)


def test_the_sign_is_clipped_at_one_in_units_of_x() -> None:
    z = torch.tensor([-1.0000001, -1.0, -0.0, 0.0, 1.0, 1.0000001])
    assert gradient(CLIPPED, build_quantizer("sign", 1), z, torch.ones(6)).tolist() == [0, 1, 1, 1, 1, 0]


def test_integers_are_clipped_at_the_ends_of_the_grid_in_step_units() -> None:
    z = torch.tensor([-2.0001, -2.0, 1.0, 1.0001])  # 2 bits: −2 … 1
    assert gradient(CLIPPED, build_quantizer("lsq", 2), z, torch.ones(4)).tolist() == [0, 1, 1, 0]
    z = torch.tensor([-0.0001, 0.0, 3.0, 3.0001])
    assert gradient(CLIPPED, build_quantizer("unsigned", 2), z, torch.ones(4)).tolist() == [0, 1, 1, 0]


def test_the_window_is_the_stretched_range() -> None:
    assert build_estimator("clipped(c=1.5)").window(Grid(-8, 7)) == (-12.0, 10.5)


@pytest.mark.parametrize("c", [0.0, -1.0, float("nan")])
def test_a_threshold_that_is_not_positive_is_refused(c: float) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        type(CLIPPED)(c=c)  # type: ignore[call-arg]
