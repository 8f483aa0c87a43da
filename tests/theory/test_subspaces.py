from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lowbit import ConfigError
from lowbit.theory import Subspaces, angled_subspaces, draw, stack, subspaces_from_bases


def angles_by_numpy(spaces: Subspaces, i: int, j: int) -> list[float]:
    """Principal angles from the sines: what is left of V_j's basis outside V_i has singular values sin θ."""
    a, b = (spaces.basis(c).double().numpy() for c in (i, j))
    if a.shape[1] < b.shape[1]:
        a, b = b, a
    sines = np.linalg.svd(b - a @ (a.T @ b), compute_uv=False)
    return sorted(math.degrees(math.asin(min(1, sine))) for sine in sines)


@pytest.mark.parametrize("theta", [0.5, 15, 60, 90])
def test_two_planes_are_those_of_the_experiment(theta: float) -> None:
    spaces = angled_subspaces(theta, dtype=torch.float64)
    t = math.radians(theta)
    first = torch.tensor([[1, 0], [0, math.sin(t)], [0, math.cos(t)], [0, 0]], dtype=torch.float64)
    second = torch.tensor([[0, 0], [0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    torch.testing.assert_close(spaces.basis(0), first)
    torch.testing.assert_close(spaces.basis(1), second)
    assert spaces.principal_angles(0, 1).tolist() == pytest.approx([theta, 90], abs=1e-6)


@pytest.mark.parametrize(
    ("angles", "dims"),
    [([20.0, 70.0], [2, 2, 2]), ([33.0, 90.0, 5.0], [3, 1, 2, 4]), ([50.0, 40.0], [1, 1, 1]), ([10.0], [1, 5])],
)
def test_consecutive_classes_enclose_the_angles_asked_for(angles: list[float], dims: list[int]) -> None:
    spaces = angled_subspaces(angles, dims, dtype=torch.float64)
    assert (spaces.dims, spaces.ambient, spaces.classes) == (tuple(dims), sum(dims), len(dims))
    for i, theta in enumerate(angles):
        found = angles_by_numpy(spaces, i, i + 1)
        assert found == pytest.approx(sorted([theta] + [90.0] * (min(dims[i : i + 2]) - 1)), abs=1e-5)
        assert spaces.principal_angles(i, i + 1).tolist() == pytest.approx(found, abs=1e-5)
    for i, dim in enumerate(dims):
        torch.testing.assert_close(spaces.basis(i).mT @ spaces.basis(i), torch.eye(dim, dtype=torch.float64))
    together = torch.cat([spaces.basis(i) for i in range(len(dims))], dim=1)
    assert torch.linalg.matrix_rank(together) == sum(dims)


def test_orthogonal_by_default() -> None:
    spaces = angled_subspaces(classes=4, dims=3)
    for i in range(4):
        for j in range(i):
            assert torch.equal(spaces.basis(i).mT @ spaces.basis(j), torch.zeros(3, 3))


def test_points_lie_in_their_subspace_uniformly() -> None:
    spaces = angled_subspaces([25.0, 65.0], [1, 2, 3], dtype=torch.float64)
    points, labels = spaces.sample(20_000, torch.Generator().manual_seed(0), (0.5, 1.5))
    assert points.shape == (60_000, 6)
    assert torch.bincount(labels).tolist() == [20_000] * 3
    norms = points.norm(dim=1)
    assert 0.5 <= norms.min() < 0.501 < 1.499 < norms.max() <= 1.5
    for i, dim in enumerate(spaces.dims):
        x, basis = points[labels == i], spaces.basis(i)
        torch.testing.assert_close(x @ basis @ basis.mT, x)
        radii, directions = x.norm(dim=1), (x @ basis) / x.norm(dim=1, keepdim=True)
        # Uniform radius: mean (m+M)/2 and variance (M−m)²/12. Uniform direction: E u = 0, E uuᵀ = I/p.
        assert float(radii.mean()) == pytest.approx(1, abs=0.01)
        assert float(radii.var()) == pytest.approx(1 / 12, abs=0.002)
        torch.testing.assert_close(directions.mean(0), torch.zeros(dim, dtype=torch.float64), atol=0.025, rtol=0)
        second = directions.mT @ directions / len(directions)
        torch.testing.assert_close(second, torch.eye(dim, dtype=torch.float64) / dim, atol=0.015, rtol=0)


def test_the_generator_decides_the_points() -> None:
    spaces = angled_subspaces(60.0)
    first, again, other = (spaces.sample(5, torch.Generator().manual_seed(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_families_are_sampled_at_once() -> None:
    families = [angled_subspaces(theta, [1, 2]) for theta in (30.0, 80.0)]
    spaces = stack(families)
    assert spaces.bases.shape == (2, 2, 3, 2)
    points, labels = spaces.sample(7, torch.Generator().manual_seed(1))
    assert (points.shape, labels.shape) == ((2, 14, 3), (14,))
    coordinates = draw((1, 2), 7, torch.Generator().manual_seed(1), shape=(2,))
    for family, own, x in zip(families, coordinates, points, strict=True):
        torch.testing.assert_close(family.embed(own), x)
    assert spaces.principal_angles(0, 1).flatten().tolist() == pytest.approx([30, 80], abs=1e-3)


def test_own_bases_are_orthonormalised() -> None:
    first = torch.tensor([[1.0, 1], [0, 2], [0, 0]])
    spaces = subspaces_from_bases([first, torch.tensor([[0.0], [3], [3]])], dtype=torch.float64)
    assert spaces.dims == (2, 1)
    torch.testing.assert_close(spaces.basis(0).mT @ spaces.basis(0), torch.eye(2, dtype=torch.float64))
    assert torch.equal(spaces.basis(0)[2], torch.zeros(2, dtype=torch.float64))
    assert spaces.principal_angles(0, 1).tolist() == pytest.approx([45], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"angles": 0.0}, "theta is 0.0, expected an angle above 0 and at most 90 degrees"),
        ({"angles": 90.1}, "theta is 90.1, expected"),
        ({"angles": math.nan}, "theta is nan, expected"),
        ({"classes": 1}, "1 class was asked for, expected at least 2"),
        ({"dims": [2, 0]}, "dims is 2, 0, expected at least 1 for each class"),
        ({"angles": [30.0, 40.0], "dims": [2, 2]}, "2 angles were given for 2 classes, expected 1: one for each pair"),
    ],
)
def test_subspaces_that_cannot_be(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        angled_subspaces(**options)  # type: ignore[arg-type]


def test_bases_that_cannot_be() -> None:
    plane = torch.eye(3)[:, :2]
    with pytest.raises(ConfigError, match="1 bases were given, expected one for each of at least 2 classes"):
        subspaces_from_bases([plane])
    with pytest.raises(ConfigError, match=r"the bases are 3 x 2, 2 x 2; expected matrices d x p, with the same d"):
        subspaces_from_bases([plane, torch.eye(2)])
    with pytest.raises(ConfigError, match="the basis of class 1 has 2 columns of rank 1; expected independent"):
        subspaces_from_bases([plane, torch.ones(3, 2)])
    with pytest.raises(ConfigError, match="of rank 0"):
        subspaces_from_bases([plane, torch.full((3, 1), math.nan)])
    with pytest.raises(ConfigError, match="cannot be treated at once"):
        stack([angled_subspaces(), angled_subspaces(dims=3)])


@pytest.mark.parametrize("radius", [(0.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_radii_that_cannot_be(radius: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=f"radius is {radius[0]} to {radius[1]}, expected 0 < m ≤ M"):
        angled_subspaces().sample(3, torch.Generator(), radius)


def test_no_points() -> None:
    with pytest.raises(ConfigError, match="0 points for each class were asked for"):
        draw((2, 2), 0, torch.Generator())
