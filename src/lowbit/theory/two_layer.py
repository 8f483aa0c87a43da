"""The two-linear-layer network of [long2021coarse]: a trained layer, a staircase, and a fixed layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit._errors import ConfigError
from lowbit.estimators import AbstractEstimator, check_pair
from lowbit.quantizers import AbstractQuantizer

SHIFT = 0.05
"""How far a central difference moves the pre-activations, root mean square, in steps of the staircase. Ours: far below
a step, where the population loss is nearly linear, and far enough that many points change their code."""


def second_layer(classes: int, units: int) -> Tensor:
    """The fixed layer V, [n, k]: the units are shared equally, v_ij = 1/2 for the units of class i and 0 elsewhere.

    The first classes get one unit more where k is not a multiple of n.
    Source: [long2021coarse], Sec. 2; the weight 1/2 is that of its experiment.

    Raises: ConfigError.
    """
    if classes < 2:
        raise ConfigError(f"{classes} class was asked for, expected at least 2: nothing else can be told apart")
    if units < classes:
        raise ConfigError(
            f"units is {units} for {classes} classes, expected at least {classes}: every class needs a unit of its own"
        )
    counts = torch.tensor([units // classes + (i < units % classes) for i in range(classes)])
    owner = torch.arange(classes).repeat_interleave(counts)
    return 0.5 * (owner == torch.arange(classes)[:, None]).float()


def check_second_layer(second: Tensor) -> None:
    """Raises: ConfigError that names the assumption of the theory that V [n, k] breaks, and where.

    The assumptions are: 0 ≤ v_ij ≤ 1; each unit counts for one class at most; each class has a unit.
    Source: [long2021coarse], Sec. 2.
    """
    if second.dim() != 2:
        raise ConfigError(f"the second layer has {second.dim()} dimensions, expected a matrix, classes x units")
    classes, units = second.shape
    if classes < 2 or units < classes:
        raise ConfigError(
            f"the second layer has {classes} classes and {units} units, expected at least 2 classes and as many units"
        )
    for wrong, says in ((~(second >= 0), "no weight below 0"), (second > 1, "no weight above 1")):
        if bool(wrong.any()):
            i, j = wrong.nonzero()[0].tolist()
            raise ConfigError(f"the second layer's weight of class {i}, unit {j} is {second[i, j]:g}: expected {says}")
    shared = ((second > 0).sum(0) > 1).nonzero()
    if len(shared):
        j = int(shared[0])
        owners = " and ".join(str(i) for i in (second[:, j] > 0).nonzero().flatten().tolist())
        raise ConfigError(
            f"unit {j} of the second layer counts for classes {owners}: a positive weight for one at most is expected"
        )
    without = ((second > 0).sum(1) == 0).nonzero()
    if len(without):
        raise ConfigError(
            f"class {int(without[0])} has no unit in the second layer: expected a positive weight for one"
        )


def margins(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How far the true class is ahead, `o_y − max_{i≠y} o_i`, and the class ξ of that maximum (the first of several).

    Args:
        outputs: o, [..., N, n].
        labels: y, [N] or [..., N].

    Returns: both [..., N].
    """
    true = labels.expand(outputs.shape[:-1]).unsqueeze(-1)
    rivals, rival = outputs.scatter(-1, true, -torch.inf).max(-1)
    return outputs.gather(-1, true).squeeze(-1) - rivals, rival


def hinge(outputs: Tensor, labels: Tensor) -> Tensor:
    """The hinge loss of each point: `ℓ = max(0, 1 − o_y + max_{i≠y} o_i)`, [..., N]; arguments as for `margins`."""
    return (1 - margins(outputs, labels)[0]).clamp_min(0)


def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    """The share of points with `argmax_i o_i = y`, [...]; of equal outputs the first class is the prediction."""
    return (outputs.argmax(-1) == labels).float().mean(-1)


@dataclass(frozen=True, eq=False)
class TwoLayerNetwork:
    """Pre-activations `h = Wᵀx`, outputs `o = V σ(h)`, with W [d, k] trained and V [n, k] fixed.

    Forward: σ(h) are the codes of h, counted from the lowest one: the quantizer's staircase is used in step units, its
    scale plays no part (resolution 1).
    Backward: `∂ℓ/∂W = x g'(h)ᵀ`-wise, with the estimator's rule for the derivative of the staircase.
    W, points and labels may have leading dimensions: one network for each of several runs.

    Args:
        second: V.
        quantizer: whose staircase; for [long2021coarse] `staircase`.
        estimator: the proxy derivative g'.

    Raises:
        ConfigError: a V that breaks the theory's assumptions, or an estimator that is not defined for the quantizer.

    Source: [long2021coarse], Sec. 2. Symbols: W, V, h, o, σ, b as there; g' is its straight-through estimator.
    """

    second: Tensor
    quantizer: AbstractQuantizer
    estimator: AbstractEstimator

    def __post_init__(self) -> None:
        check_second_layer(self.second)
        check_pair(self.estimator, self.quantizer, "activations")

    def activations(self, h: Tensor) -> Tensor:
        """σ(h): the codes, counted from the lowest."""
        return self.quantizer.discretize(h) - self.quantizer.grid.low

    def outputs(self, weights: Tensor, points: Tensor) -> Tensor:
        """O: [..., N, n] from W [..., d, k] and x [..., N, d]."""
        return self.activations(points @ weights) @ self.second.mT

    @torch.no_grad()
    def coarse_gradient(self, weights: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        """The coarse gradient of the mean loss over the points with respect to W, [..., d, k].

        Of one point, `∇̃_{w_j} ℓ = −1[ℓ > 0] (v_yj − v_ξj) g'(h_j) x` with `ξ = argmax_{i≠y} o_i`: the chain rule with
        g' in the place of the staircase's derivative, which is 0 almost everywhere. The estimator is given ∂L/∂codes of
        the mean, as in the training of a network, so it need not be linear in the gradient.

        Source: [long2021coarse], Sec. 2.
        """
        return self._back(points, labels, *self._forth(weights, points, labels)[:4])

    @torch.no_grad()
    def evaluate(self, weights: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean loss [...], accuracy [...], coarse gradient [..., d, k] and the largest h [...], in one pass."""
        h, codes, margin, rival, outputs = self._forth(weights, points, labels)
        gradient = self._back(points, labels, h, codes, margin, rival)
        return (1 - margin).clamp_min(0).mean(-1), accuracy(outputs, labels), gradient, h.amax((-2, -1))

    def _forth(self, weights: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        h = points @ weights
        codes = self.quantizer.discretize(h)
        outputs = (codes - self.quantizer.grid.low if self.quantizer.grid.low else codes) @ self.second.mT
        return h, codes, *margins(outputs, labels), outputs

    def _back(self, points: Tensor, labels: Tensor, h: Tensor, codes: Tensor, margin: Tensor, rival: Tensor) -> Tensor:
        active = ((margin < 1).to(h.dtype) / labels.shape[-1]).unsqueeze(-1)
        to_outputs = h.new_zeros((*margin.shape, len(self.second)))
        to_outputs.scatter_(-1, rival.unsqueeze(-1), active)
        to_outputs.scatter_(-1, labels.expand(rival.shape).unsqueeze(-1), -active)
        return points.mT @ self.estimator.vjp(h, codes, to_outputs @ self.second, self.quantizer.grid)

    @torch.no_grad()
    def population_gradient(self, weights: Tensor, points: Tensor, labels: Tensor, step: float | None = None) -> Tensor:
        """The gradient of the population loss, which is smooth, with respect to W [d, k]: central differences.

        `(L(W + s·E_aj) − L(W − s·E_aj)) / 2s` for each entry, with L the mean loss over one large sample, the same for
        both (common random numbers). The mean over a sample is itself piecewise constant: the sample must be so large
        that many points change their code within s. With 2^14 points and the default step, the cosine with the result
        of 2^18 points and a quarter of the step was 0.997 at the start of a descent and 0.986 where 4 % of the points
        had a positive loss; where 0.2 % had, it was 0.4 to 0.9, and neither result is to be relied on.

        A change of W_aj concerns unit j alone, and only the points whose code it changes: only their outputs are
        computed again, so that all d·k entries cost about as much as 2d passes.

        Args:
            weights: W, [d, k].
            points: [N, d]; 2^14 or more are advised.
            labels: [N].
            step: s; None moves the pre-activations by 0.05 steps of the staircase: 0.05 divided by the root mean square
                of an entry of x.

        Raises: ConfigError for a step that is not positive.

        Source: ours, not from a paper.
        """
        if step is None:
            step = SHIFT / float(points.square().mean().sqrt())
        if not step > 0:
            raise ConfigError(f"the step of the finite differences is {step}, expected a number above 0")
        h = points @ weights
        base = self.activations(h)
        outputs = base @ self.second.mT
        losses = hinge(outputs, labels)
        rows = []
        for column in points.mT:
            total = torch.zeros(weights.shape[1], dtype=torch.float64)
            for sign in (1, -1):
                change = self.activations(h + sign * step * column[:, None]) - base
                point, unit = change.nonzero(as_tuple=True)
                moved = outputs[point] + change[point, unit, None] * self.second.mT[unit]
                total.index_add_(0, unit, sign * (hinge(moved, labels[point]) - losses[point]).double())
            rows.append(total / (2 * step * len(points)))
        return torch.stack(rows).to(weights.dtype)
