"""reste: Wu et al. 2023."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowbit._errors import ConfigError
from lowbit.estimators import build_estimator
from lowbit.quantizers import build_quantizer
from straddling import around, gradient, noise, straddling
from tolerances import assert_close

SIGN = build_quantizer("sign", 1)


def reference(o: float, t: float, m: float):  # type: ignore[no-untyped-def]
    @np.vectorize
    def formula(z: float, grad: float) -> float:
        size = abs(z)
        if size > t:
            return 0.0
        if size <= m:
            return float(grad * m ** (1 / o) / m)
        return float(grad * size ** ((1 - o) / o) / o)

    return formula


@pytest.mark.parametrize("o", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize(("t", "m"), [(1.5, 0.1), (1.0, 0.25)])
def test_against_the_formula(o: float, t: float, m: float) -> None:
    thresholds = around(torch.tensor([m, t, -m, -t], dtype=torch.float64))
    z = torch.cat([straddling(SIGN.grid, torch.float64), thresholds])
    grad = noise(z.numel(), dtype=z.dtype)
    estimator = build_estimator(f"reste(o={o}, t={t}, m={m})")
    expected = torch.tensor(reference(o, t, m)(z.numpy(), grad.numpy()))
    assert_close(gradient(estimator, SIGN, z, grad), expected, "formula")


def test_the_thresholds_belong_to_the_inner_pieces() -> None:
    """At z = m the secant, at z = t still the power: o = 2 makes the pieces differ by a factor of 2."""
    estimator = build_estimator("reste(o=2.0, t=4.0, m=0.25)")
    below, at, above = 0.2499, 0.25, 0.2501
    slope = gradient(estimator, SIGN, torch.tensor([below, at, above, 4.0, 4.0001]), torch.ones(5))
    assert slope[0] == slope[1] == 2.0
    assert 0.9 < float(slope[2]) < 1.0
    assert slope[3] == 0.25
    assert slope[4] == 0.0


def test_at_the_start_it_is_the_clipped_estimator() -> None:
    z = straddling(SIGN.grid)
    grad = noise(z.numel())
    start = build_estimator("reste").at(0.0)
    assert torch.equal(gradient(start, SIGN, z, grad), gradient(build_estimator("clipped(c=1.5)"), SIGN, z, grad))


def test_between_the_thresholds_it_is_the_slope_of_the_power() -> None:
    z = torch.linspace(0.15, 1.45, 27, dtype=torch.float64)
    step = 1e-6
    slopes = ((z + step).pow(1 / 3) - (z - step).pow(1 / 3)) / (2 * step)
    end = build_estimator("reste").at(1.0)
    assert_close(gradient(end, SIGN, z, torch.ones_like(z)), slopes, "finite difference")
    assert_close(gradient(end, SIGN, -z, torch.ones_like(z)), slopes, "finite difference")


def test_the_power_rises_linearly_with_the_progress() -> None:
    base = build_estimator("reste(o_end=4.0)")
    assert [base.at(p).o for p in (0.0, 0.5, 1.0)] == [1.0, 2.5, 4.0]  # type: ignore[attr-defined]
    assert base.at(0.5).at(1.0) == base.at(1.0)


@pytest.mark.parametrize("options", ["o=0.5", "o_end=0.5", "m=0.0", "m=2.0", "t=0.05"])
def test_impossible_options_are_refused(options: str) -> None:
    with pytest.raises(ConfigError, match="estimator 'reste' must"):
        build_estimator(f"reste({options})")
