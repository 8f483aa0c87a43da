"""Fields on a periodic grid and their derivatives by the fast Fourier transform."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lowbit._errors import ConfigError

SMALLEST = 8
"""Points along an axis: with fewer, the modes that the two-thirds rule keeps are too few for `random_metric`."""


@dataclass(frozen=True)
class PeriodicGrid:
    """A flat torus, sampled at equally spaced points.

    A field is a float64 tensor whose first `dim` dimensions are the grid's; its components follow. Its spectrum has
    half as many entries in the last of the grid's dimensions, and holds only the modes below two thirds of the highest
    one on the grid, so that the product of two fields does not fold back onto modes that are kept (the 2/3 rule).

    Args:
        dim: dimension of the torus, 2 or 3.
        points: points along each axis, at least 8.
        period: length of each axis.

    Raises:
        ConfigError: one of them is out of range.
    """

    dim: int
    points: int
    period: float = 2 * math.pi

    def __post_init__(self) -> None:
        if self.dim not in (2, 3):
            raise ConfigError(f"dim is {self.dim}, expected 2 or 3")
        if self.points < SMALLEST:
            raise ConfigError(f"grid is {self.points}, expected at least {SMALLEST} points along each axis")
        if not (math.isfinite(self.period) and self.period > 0):
            raise ConfigError(f"period is {self.period}, expected a length above 0")

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid's own dimensions."""
        return (self.points,) * self.dim

    @property
    def axes(self) -> tuple[int, ...]:
        """Their positions in a field."""
        return tuple(range(self.dim))

    @property
    def smallest_eigenvalue(self) -> float:
        """The smallest non-zero eigenvalue of −Δ on this torus, `(2π/period)²`."""
        return float((2 * math.pi / self.period) ** 2)

    @cached_property
    def coordinates(self) -> Tensor:
        """The position of every point, shape (*grid, dim)."""
        axis = torch.arange(self.points, dtype=torch.float64) * (self.period / self.points)
        return torch.stack(torch.meshgrid(*[axis] * self.dim, indexing="ij"), dim=-1)

    @cached_property
    def modes(self) -> Tensor:
        """The whole numbers that count the waves of each mode along each axis, shape (*spectrum, dim)."""
        full = torch.fft.fftfreq(self.points, 1 / self.points, dtype=torch.float64)
        half = torch.fft.rfftfreq(self.points, 1 / self.points, dtype=torch.float64)
        return torch.stack(torch.meshgrid(*[full] * (self.dim - 1), half, indexing="ij"), dim=-1)

    @cached_property
    def waves(self) -> Tensor:
        """The wave vector k of each mode, shape (*spectrum, dim)."""
        return self.modes * (2 * math.pi / self.period)

    @cached_property
    def kept(self) -> Tensor:
        """1 for the modes below two thirds of the highest, 0 for the others, shape (*spectrum)."""
        return (self.modes.abs().amax(-1) < self.points / 3).to(torch.float64)

    def spectrum(self, field: Tensor) -> Tensor:
        """The modes of a field that are kept. Shapes: (*grid, ...) → (*spectrum, ...)."""
        modes = torch.fft.rfftn(field, dim=self.axes)
        return modes * self.kept.reshape(*self.kept.shape, *[1] * (field.ndim - self.dim))

    def field(self, spectrum: Tensor) -> Tensor:
        """The field with a given spectrum, the inverse of `spectrum`."""
        return torch.fft.irfftn(spectrum, s=self.shape, dim=self.axes)

    def gradient(self, spectrum: Tensor) -> Tensor:
        """The spectra of ∂_k f, shapes (*spectrum, ...) → (*spectrum, dim, ...)."""
        components = [1] * (spectrum.ndim - self.dim)
        return 1j * self.waves.reshape(*self.waves.shape, *components) * spectrum.unsqueeze(self.dim)

    def mean(self, field: Tensor) -> Tensor:
        """The mean over the grid, shape (...) of the components."""
        return field.mean(self.axes)

    def norm(self, field: Tensor) -> float:
        """`‖f‖ = (∫ Σ f² dx)^½`, the L² norm over one period with the flat volume; the sum is over all components."""
        return math.sqrt(self.period**self.dim / math.prod(self.shape) * float(field.square().sum()))
