"""Classes that live in linear subspaces: the data of the theory, at any angle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit._errors import ConfigError

Radius = tuple[float, float]

RADIUS: Radius = (2.0, 4.0)
"""The least and the largest norm of a point, m and M: ours. With the first weights from N(0, 1), all 16 levels of 4
bits are in use. Closer to 0, where points lie within a step of each other, zero loss takes ever longer; far out the
staircase no longer matters and a few steps are enough."""


@dataclass(frozen=True, eq=False)
class Subspaces:
    """One linear subspace V_i of R^d for each class, or several such families of the same dimensions.

    Args:
        bases: an orthonormal basis of each V_i, [..., n, d, p], as columns; columns from dims[i] on are 0.
        dims: the dimension of each V_i; p is the largest.
    """

    bases: Tensor
    dims: tuple[int, ...]

    @property
    def classes(self) -> int:
        """n."""
        return len(self.dims)

    @property
    def ambient(self) -> int:
        """d."""
        return self.bases.shape[-2]

    def basis(self, i: int) -> Tensor:
        """The basis of V_i without padding, [..., d, dims[i]]."""
        return self.bases[..., i, :, : self.dims[i]]

    def principal_angles(self, i: int, j: int) -> Tensor:
        """The principal angles between V_i and V_j in degrees, the smallest first, [..., min(dims[i], dims[j])]."""
        cosines = torch.linalg.svdvals(self.basis(i).mT @ self.basis(j))
        return torch.rad2deg(torch.acos(cosines.clamp(-1, 1)))

    def embed(self, coordinates: Tensor) -> Tensor:
        """Points of R^d from coordinates in the bases.

        Args:
            coordinates: [..., n, N, p], as `draw` makes them.

        Returns: [..., n·N, d], the classes one after the other.
        """
        return (coordinates @ self.bases.mT).flatten(-3, -2)

    def labels(self, per_class: int) -> Tensor:
        """The class of each point that `embed` returns for N = per_class, [n·N]."""
        return torch.arange(self.classes, device=self.bases.device).repeat_interleave(per_class)

    def sample(self, per_class: int, generator: torch.Generator, radius: Radius = RADIUS) -> tuple[Tensor, Tensor]:
        """Random points of each class: see `draw`.

        Returns: points [..., n·per_class, d] and their classes [n·per_class].

        Raises: ConfigError.
        """
        shape = self.bases.shape[:-3]
        coordinates = draw(self.dims, per_class, generator, radius, shape, self.bases.dtype)
        return self.embed(coordinates), self.labels(per_class)


def check_radius(radius: Radius) -> None:
    """Raises: ConfigError unless 0 < m ≤ M."""
    least, largest = radius
    if not 0 < least <= largest < math.inf:
        raise ConfigError(
            f"radius is {least} to {largest}, expected 0 < m ≤ M for the least and the largest norm of a point; "
            f"{RADIUS[0]:g} {RADIUS[1]:g} is a good choice"
        )


def draw(
    dims: Sequence[int],
    per_class: int,
    generator: torch.Generator,
    radius: Radius = RADIUS,
    shape: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Coordinates of random points in orthonormal bases: `r·u`, r uniform in [m, M], u uniform on the unit sphere.

    The sphere is that of the class's own dimension: the coordinates that pad a smaller one are 0. The density on V_i is
    thus bounded, and bounded away from 0, on m ≤ |x| ≤ M, as the theory asks. That r is uniform is from
    [long2021coarse]; its range is ours.

    Returns: [*shape, n, per_class, p], on the CPU, with p the largest of `dims`.

    Raises: ConfigError.
    """
    check_radius(radius)
    least, largest = radius
    if per_class < 1:
        raise ConfigError(f"{per_class} points for each class were asked for, expected at least 1")
    size = (*shape, len(dims), per_class)
    normal = torch.randn((*size, max(dims)), generator=generator, dtype=dtype)
    normal *= torch.arange(max(dims)) < torch.tensor(tuple(dims))[:, None, None]
    length = least + (largest - least) * torch.rand((*size, 1), generator=generator, dtype=dtype)
    return normal * (length / normal.norm(dim=-1, keepdim=True))


def angled_subspaces(
    angles: Sequence[float] | float = 90.0,
    dims: Sequence[int] | int = 2,
    classes: int = 2,
    dtype: torch.dtype = torch.float32,
) -> Subspaces:
    """Subspaces of which consecutive ones enclose given angles; orthogonal by default.

    The last basis vector of V_i is `sin θ_i · a + cos θ_i · b`, with a an axis of its own and b the first basis vector
    of V_{i+1}; all other basis vectors are axes. θ_i is the smallest principal angle between V_i and V_{i+1} and the
    others are right angles. Classes further apart are orthogonal, unless the one between them is a line. The ambient
    dimension is the sum of the dimensions. Two planes: V_1 = span(e₁, sin θ·e₂ + cos θ·e₃), V_2 = span(e₃, e₄), the
    experiment of [long2021coarse]; more classes and other dimensions are ours.

    Args:
        angles: θ_i in degrees, above 0 and at most 90; one for each pair of consecutive classes, or one for all.
        dims: the dimension of each subspace, or one for all.
        classes: n, where neither `dims` nor `angles` tells it.
        dtype: of the bases.

    Raises: ConfigError.
    """
    if not isinstance(dims, int):
        classes = len(dims)
    elif not isinstance(angles, int | float):
        classes = len(angles) + 1
    if classes < 2:
        raise ConfigError(f"{classes} class was asked for, expected at least 2: nothing else can be told apart")
    sizes = (dims,) * classes if isinstance(dims, int) else tuple(dims)
    thetas = (angles,) * (classes - 1) if isinstance(angles, int | float) else tuple(angles)
    if min(sizes) < 1:
        raise ConfigError(f"dims is {_listed(sizes)}, expected at least 1 for each class")
    if len(thetas) != classes - 1:
        raise ConfigError(
            f"{len(thetas)} angles were given for {classes} classes, expected {classes - 1}: one for each pair of "
            "consecutive classes, or a single number for all"
        )
    for theta in thetas:
        if not 0 < theta <= 90:
            raise ConfigError(
                f"theta is {theta}, expected an angle above 0 and at most 90 degrees: at 0 two classes share points"
            )
    axes = torch.eye(sum(sizes), dtype=torch.float64)
    bases = list(torch.split(axes, list(sizes), dim=1))
    for i in range(classes - 2, -1, -1):
        theta = math.radians(thetas[i])
        cosine = 0.0 if thetas[i] == 90 else math.cos(theta)
        bases[i] = torch.cat([bases[i][:, :-1], math.sin(theta) * bases[i][:, -1:] + cosine * bases[i + 1][:, :1]], 1)
    return _padded(bases, dtype)


def subspaces_from_bases(bases: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Subspaces:
    """Subspaces spanned by the columns of given matrices, one d × p_i matrix for each class; they are orthonormalised.

    Raises: ConfigError for matrices of different heights, or with dependent columns.
    """
    if len(bases) < 2:
        raise ConfigError(f"{len(bases)} bases were given, expected one for each of at least 2 classes")
    for i, basis in enumerate(bases):
        if basis.dim() != 2 or basis.shape[1] < 1 or len(basis) != len(bases[0]):
            shapes = ", ".join(" x ".join(map(str, b.shape)) for b in bases)
            raise ConfigError(f"the bases are {shapes}; expected matrices d x p, with the same d for every class")
        # NaN and infinity have no rank.
        rank = int(torch.linalg.matrix_rank(basis.double())) if bool(basis.isfinite().all()) else 0
        if rank < basis.shape[1]:
            raise ConfigError(
                f"the basis of class {i} has {basis.shape[1]} columns of rank {rank}; expected independent columns"
            )
    return _padded([torch.linalg.qr(basis.double())[0] for basis in bases], dtype)


def stack(families: Sequence[Subspaces]) -> Subspaces:
    """Several families of subspaces as one, with a leading dimension for the family.

    Raises: ConfigError when their dimensions differ.
    """
    dims, ambients = {family.dims for family in families}, {family.ambient for family in families}
    if len(dims) != 1 or len(ambients) != 1:
        raise ConfigError(
            f"families of subspaces of dimensions {' and '.join(map(_listed, sorted(dims)))} in "
            f"{_listed(sorted(ambients))} dimensions cannot be treated at once; expected the same for all"
        )
    return Subspaces(torch.stack([family.bases for family in families]), families[0].dims)


def _padded(bases: Sequence[Tensor], dtype: torch.dtype) -> Subspaces:
    dims = tuple(basis.shape[1] for basis in bases)
    pads = [torch.nn.functional.pad(basis, (0, max(dims) - basis.shape[1])) for basis in bases]
    return Subspaces(torch.stack(pads).to(dtype), dims)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
