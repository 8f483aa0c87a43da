"""What the theory of coarse gradients assumes of the data: do the classes lie near low-dimensional subspaces?

[long2021coarse] takes the classes to lie in linear subspaces at angles to each other. Images do not; what a network's
last hidden layer makes of them may.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowbit._errors import ConfigError, DataError

ENERGY = 0.9
"""Share of a class's energy that its subspace holds when no dimension is given."""

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class ClassSubspace:
    """The features of one class, as a matrix X of one row per image that is not centred."""

    name: str
    """The class."""
    images: int
    """Rows of X, N."""
    singular_values: list[float]
    """Of X/√N, the largest first: the root mean square of the features along each singular direction. Their squares
    add up to the mean squared norm of a feature vector, the *energy*."""
    dimension_90: int
    """Effective dimension: the fewest singular directions that hold 90 % of the energy."""
    dimension_95: int
    """The same for 95 %."""


@dataclass(frozen=True)
class FeatureReport:
    """How the features of the classes lie; lists over classes are in the order of `classes`."""

    layer: str
    """The layer whose input was looked at."""
    width: int
    """Numbers in a feature vector, d."""
    images: int
    """Number of images."""
    classes: list[ClassSubspace]
    """Each class by itself."""
    together_90: int
    """The effective dimension of all classes together, at 90 %."""
    together_95: int
    """The same at 95 %."""
    dimensions: list[int]
    """Dimension of each class's subspace in the angles: that of 90 % of the energy, or the one asked for."""
    smallest_angle: list[list[float]]
    """Smallest principal angle between the subspaces of two classes, in degrees; 0 on the diagonal."""
    mean_angle: list[list[float]]
    """Mean of their principal angles, of which there are as many as the smaller subspace has dimensions."""

    def summary(self) -> str:
        """The ranges over the classes, in a line."""
        nearest = [
            [min(angle for j, angle in enumerate(row) if j != i) for i, row in enumerate(angles)]
            for angles in (self.smallest_angle, self.mean_angle)
            if len(angles) > 1
        ]
        parts = [
            f"{_range([subspace.dimension_90 for subspace in self.classes])} dimensions hold 90 %",
            f"{_range([subspace.dimension_95 for subspace in self.classes])} hold 95 %",
        ]
        if nearest:
            parts.append(f"nearest class at {_range(nearest[0])}° (mean angle: {_range(nearest[1])}°)")
        return ", ".join(parts)

    def render(self) -> str:
        """The report as a table for people."""
        what = f"features: the input of '{self.layer}', {self.width} numbers, over {self.images:,} images"
        wide = max(8, *(len(subspace.name) for subspace in self.classes))
        lines = [
            what,
            "dimensions that hold 90 % and 95 % of each class's energy; smallest and mean principal angle to the",
            "nearest of the other classes' subspaces:",
            f"{'class':<{wide}} {'images':>8} {'90 %':>6} {'95 %':>6} {'used':>6} {'smallest':>14} {'mean':>14}",
        ]
        for i, subspace in enumerate(self.classes):
            nearest = [self._nearest(angles, i) for angles in (self.smallest_angle, self.mean_angle)]
            lines.append(
                f"{subspace.name:<{wide}} {subspace.images:>8,} {subspace.dimension_90:>6} {subspace.dimension_95:>6} "
                f"{self.dimensions[i]:>6} {nearest[0]:>14} {nearest[1]:>14}"
            )
        lines.append(f"{'together':<{wide}} {self.images:>8,} {self.together_90:>6} {self.together_95:>6}")
        return "\n".join(lines)

    def _nearest(self, angles: list[list[float]], i: int) -> str:
        others = [(angle, j) for j, angle in enumerate(angles[i]) if j != i]
        if not others:
            return "-"
        angle, j = min(others)
        return f"{angle:.1f}° ({self.classes[j].name})"


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.1f}".removesuffix(".0") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def collect_features(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, str]:
    """The input of the layer that works last, for every image, in evaluation mode.

    The layer is the `nn.Linear` or convolution that is called last in a forward pass, low-bit or not: the classifier.
    What it gets is taken before it quantizes it. The model's mode is put back afterwards.

    Args:
        model: any; it is looked into with hooks, which are gone afterwards.
        batches: inputs and labels.

    Returns: features float32 [N, d] on the CPU, what has more than two dimensions flattened; labels [N]; the layer.

    Raises: ConfigError when no such layer is called, or its inputs are not one for each image; DataError without
    batches.
    """
    features, labels = [], []
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), _watched(model) as seen:
            for images, classes in batches:
                seen.clear()
                model(images)
                if not seen:
                    raise ConfigError(
                        "the model calls no nn.Linear or convolution module, so that it has no last layer whose input "
                        "could be looked at; build its classifier as an nn.Linear"
                    )
                name, inputs = seen[0]
                if inputs.ndim < 2 or len(inputs) != len(classes):
                    raise ConfigError(
                        f"the last layer, '{name}', gets inputs of shape {tuple(inputs.shape)} for {len(classes)} "
                        "images; expected one along the first dimension for each image"
                    )
                features.append(inputs.flatten(1).float().cpu())
                labels.append(classes.cpu())
    finally:
        for module, mode in modes:
            module.training = mode
    if not features:
        raise DataError("there are no images to look at; give at least one batch")
    return torch.cat(features), torch.cat(labels), name


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """A list that holds the name and the input of the layer that was called last."""
    seen: list[tuple[str, Tensor]] = []
    names = {id(module): name for name, module in model.named_modules()}

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[:] = [(names[id(module)] or "the model", inputs[0])]

    handles = [m.register_forward_pre_hook(hook) for m in model.modules() if isinstance(m, _LAYERS)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def class_subspaces(
    features: Tensor,
    labels: Tensor,
    classes: Sequence[str] | None = None,
    dimension: int | None = None,
    layer: str = "",
) -> FeatureReport:
    """Effective dimensions of the classes' features, and the principal angles between their subspaces.

    With X_c the features of class c, one row for each of its N_c images, `X_c/√N_c = U diag(σ) Vᵀ`. The effective
    dimension at 90 % is the smallest r with `Σ_{k≤r} σ_k² ≥ 0.9 Σ_k σ_k²`, and the subspace of the class is spanned by
    the first r columns of V. The principal angles between two subspaces are the arc cosines of the singular values of
    `V_iᵀ V_j`. Nothing is centred: the subspaces of the theory go through 0. Computed in float64.

    An effective dimension says little where N_c is not much larger than it: it is N_c at most.

    Args:
        features: [N, d].
        labels: [N], class indices.
        classes: a name for each index; the indices themselves by default.
        dimension: dimension of all subspaces in the angles, 1 to d; None takes each class's own at 90 %.
        layer: where the features come from.

    Raises: ConfigError for shapes that do not fit, a dimension that a class does not have; DataError for features that
    are not finite, a class without images or with features that are all 0.

    Source: the assumption is [long2021coarse], Sec. 2; the measurement is ours.
    """
    names = [str(i) for i in range(int(labels.max()) + 1 if labels.numel() else 0)] if classes is None else classes
    _check(features, labels, names, dimension)
    features = features.double()
    subspaces, bases, energies = [], [], []
    for c, name in enumerate(names):
        rows = features[labels == c]
        values, basis = _directions(rows, name)
        energies.append(values)
        bases.append(basis)
        subspaces.append(ClassSubspace(name, len(rows), values.tolist(), _holding(values, 0.9), _holding(values, 0.95)))
    dimensions = [_holding(values, ENERGY) if dimension is None else dimension for values in energies]
    for name, values, wanted in zip(names, energies, dimensions, strict=True):
        rank = int((values > values[0] * 1e-10).sum())
        if wanted > rank:
            raise ConfigError(
                f"dimension is {wanted}, but the features of class '{name}' span {rank} only; take a smaller one, or "
                "more images"
            )
    angles = _angles([basis[:, :r] for basis, r in zip(bases, dimensions, strict=True)])
    together = _singular_values(features)
    return FeatureReport(
        layer=layer,
        width=features.shape[1],
        images=len(features),
        classes=subspaces,
        together_90=_holding(together, 0.9),
        together_95=_holding(together, 0.95),
        dimensions=dimensions,
        smallest_angle=angles[..., 0].tolist(),
        mean_angle=angles.nanmean(-1).tolist(),
    )


def _check(features: Tensor, labels: Tensor, names: Sequence[str], dimension: int | None) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(names):
        raise ConfigError(
            f"the features have shape {tuple(features.shape)} and the labels {tuple(labels.shape)}; expected [N, d] "
            "and [N] with N of 1 or more"
        )
    if labels.min() < 0 or labels.max() >= len(names):
        raise ConfigError(f"labels go from {labels.min()} to {labels.max()}, but there are {len(names)} classes")
    if dimension is not None and not 1 <= dimension <= features.shape[1]:
        raise ConfigError(f"dimension is {dimension}, expected a whole number from 1 to {features.shape[1]}")
    if not bool(features.isfinite().all()):
        raise DataError("the features are not all finite: the weights or the images hold infinities or NaN")


def _directions(rows: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The singular values of the rows over the root of their number, and the right singular vectors as columns."""
    if not len(rows):
        raise DataError(f"class '{name}' has none of the images that were looked at; take more of them")
    _, values, basis = torch.linalg.svd(rows / len(rows) ** 0.5, full_matrices=False)
    if values[0] == 0:
        raise DataError(f"the features of class '{name}' are all 0: they span no subspace")
    return values, basis.mT


def _singular_values(rows: Tensor) -> Tensor:
    """Without the vectors, from the smaller of the two Gram matrices: exact enough for shares of the energy."""
    tall = len(rows) > rows.shape[1]
    return torch.linalg.eigvalsh(rows.mT @ rows if tall else rows @ rows.mT).clamp_min(0).sqrt().flip(0)


def _holding(values: Tensor, share: float) -> int:
    """How many of the first singular values hold `share` of the energy."""
    held = values.square().cumsum(0)
    return int((held < share * held[-1] * (1 - 1e-12)).sum()) + 1  # rounding must not cost a dimension


def _angles(bases: list[Tensor]) -> Tensor:
    """The principal angles of each pair in degrees, the smallest first, filled up with NaN."""
    most = max(basis.shape[1] for basis in bases)
    table = torch.full((len(bases), len(bases), most), torch.nan, dtype=torch.float64)
    for i, one in enumerate(bases):
        table[i, i] = 0
        for j in range(i):
            cosines = torch.linalg.svdvals(one.mT @ bases[j]).clamp(max=1)
            table[i, j, : len(cosines)] = table[j, i, : len(cosines)] = torch.rad2deg(torch.acos(cosines))
    return table
