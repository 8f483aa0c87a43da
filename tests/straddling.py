"""Inputs that sit on, just below and just above every threshold, and the things to run over."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators import ESTIMATORS, AbstractEstimator, check_pair, staircase
from lowbit.quantizers import QUANTIZERS, AbstractQuantizer, Grid

# Where some estimator changes its formula, in units of z: ReSTE's m and t, the clip at 1 and at 1.5.
THRESHOLDS = (0.1, 0.5, 1.0, 1.5)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def around(points: Tensor) -> Tensor:
    """Each point, its neighbour below and its neighbour above, in the points' dtype."""
    up, down = torch.full_like(points, torch.inf), torch.full_like(points, -torch.inf)
    return torch.cat([torch.nextafter(points, down), points, torch.nextafter(points, up)])


def straddling(grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
    """z in step units: codes, ties, ends and thresholds of the grid, each with its neighbours, zeros, and noise."""
    codes = torch.arange(grid.low, grid.high + 1, grid.step, dtype=torch.float64)
    codes = torch.cat([codes[:4], codes[-4:]]).unique()
    clips = torch.tensor(THRESHOLDS, dtype=torch.float64)
    points = torch.cat([codes, codes - 0.5, codes + 0.5, 1.5 * codes, clips, -clips]).unique()
    wide = (grid.high - grid.low) * noise(16, seed=1, dtype=torch.float64)
    zeros = torch.tensor([0.0, -0.0], dtype=torch.float64)
    return torch.cat([around(points.to(dtype)), zeros.to(dtype), wide.to(dtype)])


def extremes(grid: Grid, dtype: torch.dtype) -> Tensor:
    """`straddling`, the largest numbers of the dtype, the smallest, and the infinities."""
    info = torch.finfo(dtype)
    ends = torch.tensor([info.max, info.min, info.tiny, -info.tiny, torch.inf, -torch.inf], dtype=dtype)
    return torch.cat([straddling(grid, dtype), ends])


def label(member: object) -> str:
    """A short name for a parametrized test."""
    if isinstance(member, AbstractQuantizer):
        name = QUANTIZERS.name_of(type(member), default="?")
        transform = getattr(member, "transform", "none")
        policy, granularity = member.scaling.policy, type(member.granularity).__name__  # type: ignore[attr-defined]
        return f"{name}{member.grid.bits}-{policy}-{granularity}" + ("" if transform == "none" else f"-{transform}")
    return repr(member).replace(" ", "")


ALL_ESTIMATORS: list[AbstractEstimator] = [e for _, cls in ESTIMATORS.items() for e in cls.examples()]
ALL_QUANTIZERS: list[AbstractQuantizer] = [q for _, cls in QUANTIZERS.items() for q in cls.examples()]


def fits(estimator: AbstractEstimator, quantizer: AbstractQuantizer) -> bool:
    """Whether the estimator is defined for the quantizer in one of its roles."""
    try:
        check_pair(estimator, quantizer, min(estimator.roles))
    except ConfigError:
        return False
    return True


def staircases() -> list[AbstractQuantizer]:
    """For each quantizer class the staircases of its two smallest widths and of its largest."""
    chosen: list[AbstractQuantizer] = []
    for _, cls in QUANTIZERS.items():
        by_width = {quantizer.grid.count: quantizer for quantizer in reversed(cls.examples())}
        counts = sorted(by_width)
        chosen += [by_width[count] for count in sorted({*counts[:2], counts[-1]})]
    return chosen


PAIRS = [(e, q) for e in ALL_ESTIMATORS for q in staircases() if fits(e, q)]


def gradient(estimator: AbstractEstimator, quantizer: AbstractQuantizer, z: Tensor, grad: Tensor) -> Tensor:
    """∂L/∂z through the whole machinery: staircase, autograd, vjp."""
    z = z.detach().clone().requires_grad_()
    (result,) = torch.autograd.grad(staircase(z, quantizer, estimator), z, grad)
    return result
