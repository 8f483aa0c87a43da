"""The linearly nearly Euclidean (LNE) metric, as an operator: never as a matrix."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.geometry._base import AbstractMetric
from lowbit.geometry.strong import StrongInverse
from lowbit.geometry.tau import check_tau

Inverse = Literal["exact", "weak", "strong"]


class LNEMetric(AbstractMetric):
    """g = δ − u uᵀ with u = tanh(τ·w), [chen2024ricci], Eq. 16 and 26.

    The eigenvalues are 1 (n − 1 times) and 1 − ‖u‖²; g is positive definite exactly when ‖u‖² < 1, which is for the
    caller to see to (`TauRule`, `require_positive_definite`). All but the strong inverse is O(n) in time and memory.

    Symbols: ξ or w of the paper: `weights`; τ: `tau`.

    Args:
        weights: w, shape (..., n).
        tau: τ > 0, a number or a tensor of shape (..., 1).
        inverse: how `solve` inverts g. "exact": Sherman–Morrison, `v + u (u·v)/(1 − ‖u‖²)`. "weak": `v + u (u·v)` (Cor.
            19, Eq. 29), close to it while g is diagonally dominant. "strong": a network's estimate of g⁻¹ (Sec. 5.2,
            Eq. 28), for small n.
        strong: the network of the strong inverse. Without one, a network is made and trained on this very metric.

    Raises: ConfigError for an unknown inverse, a number τ that is not positive and finite, a network without the strong
        inverse, and an n that is not the network's or beyond what the strong inverse can take.
    """

    def __init__(
        self, weights: Tensor, tau: float | Tensor, inverse: Inverse = "exact", strong: StrongInverse | None = None
    ) -> None:
        check_tau(tau)
        if inverse not in ("exact", "weak", "strong"):
            raise ConfigError(f"inverse={inverse!r} of the LNE metric must be exact, weak or strong")
        if strong is not None and inverse != "strong":
            raise ConfigError(f"a StrongInverse was given with inverse={inverse!r}: it serves inverse='strong' alone")
        self.u = torch.tanh(weights * tau)
        self.inverse = inverse
        self._strong = strong
        if inverse == "strong" and strong is None:
            self._strong = StrongInverse.fitted_to(self)
        if self._strong is not None:
            self._strong.check_size(self)

    @property
    def shape(self) -> torch.Size:
        """(..., n, n), the shape of the matrix that is never formed."""
        return torch.Size((*self.u.shape, self.u.shape[-1]))

    def norm_squared(self) -> Tensor:
        """‖u‖², shape (..., 1): g is positive definite while this is below 1."""
        return self.u.square().sum(-1, keepdim=True)

    def matvec(self, v: Tensor) -> Tensor:
        """`g v = v − u (u·v)`. Shapes: (..., n) → (..., n)."""
        return torch.addcmul(v, self.u, self._along(v), value=-1)

    def solve(self, v: Tensor) -> Tensor:
        """`g⁻¹ v` by the chosen inverse. Shapes: (..., n) → (..., n)."""
        if self._strong is not None:
            return self._strong.solve(self, v)
        if self.inverse == "weak":
            return torch.addcmul(v, self.u, self._along(v))
        return torch.addcmul(v, self.u, self._along(v) / (1 - self.norm_squared()))

    def logdet(self) -> Tensor:
        """`log det g = log(1 − ‖u‖²)`, shape (...); NaN where g is not positive definite."""
        return torch.log1p(-self.norm_squared()).squeeze(-1)

    def eigenvalue_bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest and largest eigenvalue, shapes (...): 1 − ‖u‖² and 1 (the former only, if n = 1)."""
        low = (1 - self.norm_squared()).squeeze(-1)
        return low, low if self.u.shape[-1] == 1 else torch.ones_like(low)

    def dominance_margin(self) -> Tensor:
        """`min_i (1 − u_i² − |u_i| Σ_{j≠i} |u_j|)`, shape (...): positive where g is diagonally dominant (Def. 17)."""
        size = self.u.abs()
        return (1 - size * size.sum(-1, keepdim=True)).amin(-1)

    def relative_bounds(self, reference: Self) -> tuple[Tensor, Tensor]:
        """Bounds on the eigenvalues of `g₀⁻¹ g`, shapes (...), in O(n); NaN where g₀ is not positive definite.

        With b of the reference, a of this metric and d = a − b, `g₀⁻¹g − δ = g₀⁻¹(b bᵀ − a aᵀ)` has rank two. Its two
        eigenvalues have the sum `(Δ − d·(a + b))/(1 − ‖b‖²)` and the product `−Δ/(1 − ‖b‖²)`, where `Δ = ‖a‖²‖b‖² −
        (a·b)² = ‖d‖²‖b‖² − (d·b)²`: one is ≥ 0, the other ≤ 0. Source: ours, not from a paper.
        """
        a, b = self.u, reference.u
        d = a - b
        rest = 1 - b.square().sum(-1)
        rest = rest.where(rest > 0, torch.nan)
        gram = (d.square().sum(-1) * b.square().sum(-1) - (d * b).sum(-1).square()).clamp_min(0)
        half_sum, product = (gram - (d * (a + b)).sum(-1)) / rest / 2, -gram / rest
        # The root of the larger size first: the other from the product, without cancellation.
        outer = half_sum + torch.copysign((half_sum.square() - product).sqrt(), half_sum)
        inner = torch.where(outer == 0, 0, product / outer)
        return 1 + torch.minimum(outer, inner), 1 + torch.maximum(outer, inner)

    def as_matrix(self) -> Tensor:
        """The dense matrix, shape (..., n, n). For tests and the strong inverse: O(n²) memory."""
        eye = torch.eye(self.u.shape[-1], dtype=self.u.dtype, device=self.u.device)
        return eye - self.u.unsqueeze(-1) * self.u.unsqueeze(-2)

    def _along(self, v: Tensor) -> Tensor:
        """u·v, shape (..., 1)."""
        return (self.u * v).sum(-1, keepdim=True)


def outer_difference_norm_squared(coefficients: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """‖Σ_t c_t (a_t a_tᵀ − b_t b_tᵀ)‖² (Frobenius) without forming the matrix, exact also where a and b nearly agree.

    With s = a + b and d = a − b each term is ½(s dᵀ + d sᵀ), so that the square is
    `½ Σ_tr c_t c_r ((s_t·s_r)(d_t·d_r) + (s_t·d_r)(d_t·s_r))`. In a step of training d is about 10⁻⁴ of s, and summing
    products of the u themselves would cancel all digits of float32.

    N of [chen2024ricci], Eq. 35, is of this form: every metric there is δ − u uᵀ, and the δ cancel.

    Args:
        coefficients: c, shape (k,).
        first, second: a and b, shape (k, ..., n).

    Returns:
        Shape (...), one for each block. Source: ours, not from a paper.
    """
    s, d = (first + second).movedim(0, -2), (first - second).movedim(0, -2)
    with torch.autocast(s.device.type, enabled=False):  # a user may call `step` under autocast
        mixed = s @ d.mT
        terms = (s @ s.mT) * (d @ d.mT) + mixed * mixed.mT
    return (torch.outer(coefficients, coefficients) * terms).sum((-2, -1)) / 2
