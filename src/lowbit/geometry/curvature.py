"""Curvature of any metric that is given as a function, by automatic differentiation.

Formulas: [chen2024ricci], Appendix A. Sign and index conventions are those under which a sphere has positive scalar
curvature; they are stated at each function. A lower index after `∂` is the coordinate of a derivative, and in a tensor
that coordinate stands first: `first[k, i, j] = ∂_k g_ij`.

The functions of a metric function and a point may be called under `torch.vmap` for many points at once; the values of
the metric, which `vmap` hides, are then not checked.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor
from torch.func import jacrev

from lowbit._errors import ConfigError

MetricFunction = Callable[[Tensor], Tensor]
"""Maps a point, shape (n,), to the matrix of the metric there, shape (n, n), by differentiable operations of torch."""


def christoffel(metric_fn: MetricFunction, point: Tensor) -> Tensor:
    """The Christoffel symbols Γ of the Levi-Civita connection at a point.

    `Γ^k_ij = ½ g^{km} (∂_i g_jm + ∂_j g_im − ∂_m g_ij)`, as `result[k, i, j]`; [chen2024ricci], Appendix A.

    Args:
        metric_fn: the metric, (n,) → (n, n).
        point: where, shape (n,).

    Returns:
        Shape (n, n, n).

    Raises:
        ConfigError: the point is not a vector of floating-point numbers, or the metric there is not a symmetric
            invertible n × n matrix.
    """
    _check(metric_fn, point)
    return _christoffel(metric_fn, point)


def riemann(metric_fn: MetricFunction, point: Tensor) -> Tensor:
    """The Riemann curvature tensor at a point.

    `R^l_kij = ∂_i Γ^l_jk − ∂_j Γ^l_ik + Γ^l_im Γ^m_jk − Γ^l_jm Γ^m_ik`, as `result[l, k, i, j]`: the last two indices
    are the plane, the first two the rotation of a vector carried around it, `[∇_i, ∇_j] v^l = R^l_kij v^k`. On the unit
    sphere `R^l_kij = δ^l_i g_kj − δ^l_j g_ki`. [chen2024ricci], Appendix A. Arguments and errors as in `christoffel`.

    Returns:
        Shape (n, n, n, n).
    """
    gamma, change = _christoffel_and_change(metric_fn, point)
    half = torch.einsum("iljk->lkij", change) + torch.einsum("lim,mjk->lkij", gamma, gamma)
    return half - half.mT


def ricci_tensor(metric_fn: MetricFunction, point: Tensor) -> Tensor:
    """The Ricci tensor at a point, `Ric_jk = R^i_jik`; on the unit n-sphere it is (n − 1) g.

    `Ric_jk = ∂_i Γ^i_jk − ∂_j Γ^i_ik + Γ^i_im Γ^m_jk − Γ^i_jm Γ^m_ik`, [chen2024ricci], Appendix A. Arguments and
    errors as in `christoffel`.

    Returns:
        Shape (n, n), symmetric.
    """
    gamma, change = _christoffel_and_change(metric_fn, point)
    return torch.einsum("iijk->jk", change) - torch.einsum("jiik->jk", change) + ricci_quadratic(gamma)


def scalar_curvature(metric_fn: MetricFunction, point: Tensor) -> Tensor:
    """The scalar curvature at a point, `R = g^{ij} Ric_ij`; in two dimensions twice the Gauss curvature.

    On the n-sphere of radius r it is n (n − 1) / r². [chen2024ricci], Appendix A. Arguments and errors as in
    `christoffel`.

    Returns:
        Shape ().
    """
    ricci = ricci_tensor(metric_fn, point)
    return torch.linalg.solve(metric_fn(point), ricci).diagonal().sum()


def connection(inverse: Tensor, first: Tensor) -> Tensor:
    """Γ from the inverse metric and ∂g, as `result[..., k, i, j] = Γ^k_ij`; the formula is at `christoffel`.

    Args:
        inverse: g⁻¹, shape (..., n, n).
        first: ∂g, shape (..., n, n, n), the coordinate of the derivative first.
    """
    turned = first.transpose(-3, -2)
    return torch.einsum("...km,...mij->...kij", inverse, turned + turned.mT - first) / 2


def ricci_quadratic(gamma: Tensor) -> Tensor:
    """The part of the Ricci tensor without derivatives of Γ: `Γ^i_im Γ^m_jk − Γ^i_jm Γ^m_ik`, as `result[..., j, k]`.

    Shapes: (..., n, n, n) → (..., n, n).
    """
    trace = torch.einsum("...iim->...m", gamma)
    return torch.einsum("...m,...mjk->...jk", trace, gamma) - torch.einsum("...ijm,...mik->...jk", gamma, gamma)


def _christoffel(metric_fn: MetricFunction, point: Tensor) -> Tensor:
    return connection(torch.linalg.inv(metric_fn(point)), _derivative(metric_fn, point))


def _christoffel_and_change(metric_fn: MetricFunction, point: Tensor) -> tuple[Tensor, Tensor]:
    """Γ and its derivative, `change[l, k, i, j] = ∂_l Γ^k_ij`."""
    _check(metric_fn, point)
    symbols = partial(_christoffel, metric_fn)
    return symbols(point), _derivative(symbols, point)


def _derivative(tensor_fn: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """The derivative of a tensor field, its coordinate first."""
    # Reverse mode, although there are more outputs than inputs: more operations have it, and forward mode loads
    # torch.jit, which warns that it is deprecated.
    return jacrev(tensor_fn)(point).movedim(-1, 0)


def _check(metric_fn: MetricFunction, point: Tensor) -> None:
    """Raises: ConfigError when there is no metric at the point."""
    if point.ndim != 1 or not point.is_floating_point():
        kind = f"{str(point.dtype).removeprefix('torch.')} tensor of shape {tuple(point.shape)}"
        raise ConfigError(
            f"the point is a {kind}, expected a floating-point vector of shape (n,); use torch.vmap for several points"
        )
    metric, n = metric_fn(point), len(point)
    if metric.shape != (n, n):
        raise ConfigError(
            f"metric_fn returned shape {tuple(metric.shape)} at a point of {n} coordinates, expected ({n}, {n})"
        )
    if metric.dtype != point.dtype:
        raise ConfigError(f"metric_fn returned {metric.dtype} at a point in {point.dtype}, expected the same")
    with suppress(RuntimeError):  # under vmap no value can be looked at
        _check_values(metric.detach(), point)


def _check_values(metric: Tensor, point: Tensor) -> None:
    where = f"at the point {[round(value, 6) for value in point.tolist()]}"
    precision = torch.finfo(metric.dtype).eps
    if not metric.isfinite().all():
        raise ConfigError(f"metric_fn returned NaN or infinite entries {where}, expected a finite matrix")
    asymmetry = (metric - metric.mT).abs().max().item()
    if asymmetry > precision**0.5 * metric.abs().max().item():
        raise ConfigError(
            f"metric_fn returned a matrix that is not symmetric {where}: it differs from its transpose by "
            f"{asymmetry:.3g}; return (g + g.T) / 2 if only that part is meant"
        )
    sizes = torch.linalg.svdvals(metric)
    if sizes[-1] <= len(point) * precision * sizes[0]:
        raise ConfigError(
            f"metric_fn returned a singular matrix {where}; a metric is invertible, so choose a point where these "
            "coordinates are regular"
        )
