"""Training under a discrete Ricci flow (RF-DNN), Algorithm 2, as printed: one ordinary pass and four shifted ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from lowbit._errors import CheckpointError, ConfigError
from lowbit.estimators import ESTIMATORS
from lowbit.geometry import Inverse, LNEMetric, largest_tau, outer_difference_norm_squared
from lowbit.layers import frozen_statistics, latent_parameters, quantizers_of
from lowbit.methods._base import (
    METHODS,
    AbstractMethod,
    Backward,
    Batch,
    Loss,
    StepRecord,
    forward_backward,
    learning_rates,
    move,
)

# Which shift each of the four passes applies, in units of `shift`: rows (k1, k2), then columns (j1, j2).
SHIFTS = {"k1": (1, 0), "k2": (-1, 0), "j1": (0, 1), "j2": (0, -1)}


@dataclass(frozen=True)
class _Layer:
    """A layer that takes part in the flow: its latent weight, the learning rate η of that, its metric g_w and τ."""

    name: str
    weight: nn.Parameter
    rate: float
    metric: LNEMetric
    tau: Tensor


@METHODS.register("ricci")
class Ricci(AbstractMethod):
    """Natural gradient on the LNE manifold, with a discrete Ricci flow as regulariser and gate.

    For each layer, with latent weights w, `g_w = δ − u uᵀ`, `u = tanh(τ w)`:

    - four passes over the batch translated by k1, k2 rows and j1, j2 columns; each gives a virtual update
      `w|a = w − η g_w⁻¹ ∂L|a` and from it a metric `g|a` (Eq. 30 to 32);
    - `−2 Ric = (g|k1 − g|k2)/(k1 − k2) − (g|j1 − g|j2)/(j1 − j2)`, and the flow asks for `g(t+1)|k1 − g(t)|k1 = −2
      Ric(t)` (Eq. 33, 34). What is missing from that is `N = ‖g(t+1)|k1 − g(t)|k1 + 2 Ric(t)‖²` (Eq. 35), here from
      inner products: O(n);
    - gradient `g_w⁻¹ ∂L · 1[N ≤ ε] + α ∂N/∂w` (Eq. 36 and the loss L + αN of Algorithm 2).

    Choices the paper leaves open (ours): g(t) is that of the previous step, g(t+1)|k1 is this step's and carries ∂N/∂w
    with the virtual gradients held constant; the gate acts on the loss's part alone; shifted passes leave the running
    statistics of batch normalisation alone; pixels shifted in are 0; τ is the largest with ‖u‖² ≤ ρ, held constant in
    ∂N/∂w; η is the learning rate of the latent weights' parameter group. α and ε have no published values.

    Weights that are float, frozen, not in the optimizer, or not reached by the loss keep their ordinary gradient: the
    flow is over the latent weights that move.

    The model's estimator should be `identity` or `clipped`: this method applies g⁻¹ itself.

    Args:
        alpha: α, the weight of N in the loss.
        epsilon: ε, the largest N at which a layer still follows the loss.
        rho: ρ, the bound on ‖u‖², between 0 and 1.
        shift: k1 = j1 = shift and k2 = j2 = −shift, in pixels; the paper asks for |k1 − k2| < 4.
        inverse: exact (Sherman–Morrison, ours) or weak (Eq. 29).
        backward, clip_norm: as for `plain`.

    Inputs must be images (N, C, H, W). The step reports the metrics `ricci_n` (mean of N over layers), `ricci_gated`
    (share of layers whose gate was shut) and `ricci_correction` (mean over layers of ‖g⁻¹∂ − ∂‖/‖∂‖).

    Source: [chen2024ricci], Algorithm 2.
    """

    def __init__(
        self,
        alpha: float = 0.01,
        epsilon: float = 1.0,
        rho: float = 0.9,
        shift: int = 1,
        inverse: Inverse = "exact",
        backward: Backward = Tensor.backward,
        clip_norm: float | None = None,
    ) -> None:
        if shift != 1:
            raise ConfigError(
                f"shift={shift} of method 'ricci': |k1 − k2| = 2·shift must stay below 4 pixels, so it is 1"
            )
        if not 0 < rho < 1:
            raise ConfigError(
                f"rho={rho} of method 'ricci' must lie between 0 and 1: g is positive definite only there"
            )
        if inverse not in ("exact", "weak"):
            raise ConfigError(f"inverse={inverse!r} of method 'ricci' must be exact or weak")
        for option, value in (("alpha", alpha), ("epsilon", epsilon)):
            if not value >= 0:
                raise ConfigError(f"{option}={value} of method 'ricci' must be a number that is not negative")
        self.alpha, self.epsilon, self.rho, self.shift, self.inverse = alpha, epsilon, rho, shift, inverse
        self.backward = backward
        self.clip_norm = clip_norm
        # u of g(t)|k1, k2, j1, j2 for each layer: shape (4, n).
        self._previous: dict[str, Tensor] = {}

    def step(self, model: nn.Module, batch: Batch, loss_fn: Loss, optimizer: Optimizer) -> StepRecord:
        """Four shifted passes, one ordinary pass, one step."""
        if batch[0].ndim != 4:
            raise ConfigError(
                f"method 'ricci' shifts images (N, C, H, W); inputs of shape {tuple(batch[0].shape)} were given"
            )
        rates = learning_rates(optimizer)
        latent = [(name, w) for name, w in latent_parameters(model) if w.requires_grad and id(w) in rates]
        if not latent:
            raise ConfigError(
                "method 'ricci' needs latent weights that move: convert the model to a few bits, leave some of those "
                "weights unfrozen, and give them to the optimizer"
            )
        if any(ESTIMATORS.name_of(type(q.rule), "") == "lne" for q in quantizers_of(model)):
            raise ConfigError(
                "method 'ricci' applies g⁻¹ itself: take the estimator 'identity' or 'clipped', not 'lne'"
            )
        flow = [_Layer(name, w, rates[id(w)], *self._metric(w.detach())) for name, w in latent]
        moves = self._virtual_moves(model, batch, loss_fn, optimizer, flow)
        optimizer.zero_grad()
        record = forward_backward(model, batch, loss_fn, self.backward)
        figures = [
            self._correct(layer, torch.stack(moves[layer.name]))
            for layer in flow
            if len(moves[layer.name]) == len(SHIFTS) and layer.weight.grad is not None
        ]
        if not figures:
            raise ConfigError("method 'ricci': the loss depends on none of the model's latent weights")
        move(model, optimizer, self.clip_norm)
        n, gated, correction = torch.stack(figures).mean(0)
        return StepRecord(
            record.loss, record.correct, {"ricci_n": n, "ricci_gated": gated, "ricci_correction": correction}
        )

    def _metric(self, w: Tensor) -> tuple[LNEMetric, Tensor]:
        flat = w.reshape(-1)
        tau = largest_tau(flat, self.rho)
        return LNEMetric(flat, tau, self.inverse), tau

    def _virtual_moves(
        self,
        model: nn.Module,
        batch: Batch,
        loss_fn: Loss,
        optimizer: Optimizer,
        flow: list[_Layer],
    ) -> dict[str, list[Tensor]]:
        """η g_w⁻¹ ∂L|a for the four shifts a, where there is a gradient: layer name → four of shape (n,)."""
        images, labels = batch
        moves: dict[str, list[Tensor]] = {layer.name: [] for layer in flow}
        with frozen_statistics(model):
            for rows, columns in SHIFTS.values():
                optimizer.zero_grad()
                shifted = translate(images, self.shift * rows, self.shift * columns)
                forward_backward(model, (shifted, labels), loss_fn, self.backward)
                for layer in flow:
                    if layer.weight.grad is not None:
                        moves[layer.name].append(layer.rate * layer.metric.solve(layer.weight.grad.reshape(-1)))
        return moves

    def _correct(self, layer: _Layer, moves: Tensor) -> Tensor:
        """Turn the layer's gradient into the paper's; returns (N, gate shut, relative correction)."""
        w = layer.weight
        assert w.grad is not None
        n, slope = self._flow_residual(layer.name, w, layer.tau, moves)
        plain = w.grad.reshape(-1)
        natural = layer.metric.solve(plain)
        open_gate = n <= self.epsilon
        correction = (natural - plain).norm() / plain.norm().clamp_min(torch.finfo(plain.dtype).tiny)
        w.grad.copy_((natural * open_gate + self.alpha * slope).reshape(w.shape))
        return torch.stack([n, (~open_gate).to(n.dtype), correction])

    def _flow_residual(self, name: str, w: nn.Parameter, tau: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
        """N of Eq. 35 and ∂N/∂w, both 0 at the first step, when there is no g(t) yet; stores this step's metrics."""
        with torch.enable_grad():
            flat = w.detach().reshape(-1).requires_grad_()
            now = torch.tanh(tau * (flat - moves))
            previous = self._previous.get(name)
            if previous is not None and previous.shape != now.shape:
                raise CheckpointError(
                    f"method 'ricci' remembers layer '{name}' with {previous.shape[-1]} weights, the model has "
                    f"{flat.numel()} there: its state is that of another model"
                )
            if previous is None:
                n, slope = flat.new_zeros(()), torch.zeros_like(flat)
            else:
                n = self._residual(now[0], previous.to(now))
                (slope,) = torch.autograd.grad(n, flat)
        self._previous[name] = now.detach()
        return n.detach(), slope

    def _residual(self, now: Tensor, previous: Tensor) -> Tensor:
        """N of Eq. 35 from u of g(t+1)|k1, shape (n,), and of g(t)|k1, k2, j1, j2, shape (4, n): δ cancels."""
        k1, k2, j1, j2 = previous
        k = j = 2 * self.shift
        coefficients = now.new_tensor([-1.0, 1 / k, -1 / j])
        return outer_difference_norm_squared(coefficients, torch.stack([now, k1, j1]), torch.stack([k1, k2, j2]))

    def state_dict(self) -> dict[str, Any]:
        """u of g(t)|k1, k2, j1, j2 for each layer."""
        return {"previous": dict(self._previous)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up g(t). Raises: CheckpointError when the state is another method's."""
        if set(state) != {"previous"}:
            raise CheckpointError(
                "the checkpoint holds no state of the method 'ricci': it was written by another method"
            )
        self._previous = dict(state["previous"])


def translate(images: Tensor, rows: int, columns: int) -> Tensor:
    """Images (N, C, H, W) moved down by `rows` and right by `columns` pixels; 0 comes in at the border."""
    height, width = images.shape[-2:]
    # Negative padding crops: what is added on one side is taken away on the other.
    return F.pad(images, (columns, -columns, rows, -rows))[..., :height, :width]
