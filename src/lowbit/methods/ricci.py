"""Training under a discrete Ricci flow (RF-DNN), Algorithm 2, as printed: one ordinary pass and four shifted ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from lowbit._errors import CheckpointError, ConfigError
from lowbit.geometry import Inverse, LNEMetric, largest_tau, outer_sum_norm_squared
from lowbit.layers import frozen_statistics, latent_parameters
from lowbit.methods._base import METHODS, AbstractMethod, Backward, Batch, Loss, StepRecord, forward_backward, move

# Which shift each of the four passes applies, in units of `shift`: rows (k1, k2), then columns (j1, j2).
SHIFTS = {"k1": (1, 0), "k2": (-1, 0), "j1": (0, 1), "j2": (0, -1)}


@METHODS.register("ricci")
class Ricci(AbstractMethod):
    """Natural gradient on the LNE manifold, with a discrete Ricci flow as regulariser and gate.

    For each layer, with latent weights w, `g_w = δ − u uᵀ`, `u = tanh(τ w)`:

    - four passes over the batch translated by k1, k2 rows and j1, j2 columns; each gives a virtual update
      `w|a = w − η g_w⁻¹ ∂L|a` and from it a metric `g|a` (Eq. 30 to 32);
    - `−2 Ric = (g|k1 − g|k2)/(k1 − k2) − (g|j1 − g|j2)/(j1 − j2)`, and the flow asks for `g(t+1)|k1 − g(t)|k1 = −2
      Ric(t)` (Eq. 33, 34). What is missing from that is `N = ‖g(t+1)|k1 − g(t)|k1 + 2 Ric(t)‖²` (Eq. 35), here summed
      from inner products: O(n);
    - gradient `g_w⁻¹ ∂L · 1[N ≤ ε] + α ∂N/∂w` (Eq. 36 and the loss L + αN of Algorithm 2).

    Choices the paper leaves open (ours): g(t) is that of the previous step, g(t+1)|k1 is this step's and carries ∂N/∂w
    with the virtual gradients held constant; the gate acts on the loss's part alone; shifted passes leave the running
    statistics of batch normalisation alone; pixels shifted in are 0; τ is the largest with ‖u‖² ≤ ρ; η is the latent
    weights' learning rate. α and ε have no published values.

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
        if alpha < 0 or epsilon < 0:
            raise ConfigError(f"alpha={alpha}, epsilon={epsilon} of method 'ricci' must not be negative")
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
        latent = latent_parameters(model)
        if not latent:
            raise ConfigError("method 'ricci' needs latent weights: convert the model to a few bits first")
        metrics = {name: self._metric(w.detach()) for name, w in latent}
        moves = self._virtual_moves(model, batch, loss_fn, optimizer, metrics)
        optimizer.zero_grad()
        record = forward_backward(model, batch, loss_fn, self.backward)
        figures = [self._correct(name, w, metrics[name], moves[name]) for name, w in latent]
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
        metrics: dict[str, tuple[LNEMetric, Tensor]],
    ) -> dict[str, Tensor]:
        """η g_w⁻¹ ∂L|a for the four shifts a: layer name → (4, n)."""
        images, labels = batch
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        moves: dict[str, list[Tensor]] = {name: [] for name in metrics}
        with frozen_statistics(model):
            for rows, columns in SHIFTS.values():
                optimizer.zero_grad()
                shifted = translate(images, self.shift * rows, self.shift * columns)
                forward_backward(model, (shifted, labels), loss_fn, self.backward)
                for name, w in latent_parameters(model):
                    assert w.grad is not None
                    moves[name].append(rates[id(w)] * metrics[name][0].solve(w.grad.reshape(-1)))
        return {name: torch.stack(rows) for name, rows in moves.items()}

    def _correct(self, name: str, w: nn.Parameter, metric: tuple[LNEMetric, Tensor], moves: Tensor) -> Tensor:
        """Turn the layer's gradient into the paper's; returns (N, gate shut, relative correction)."""
        assert w.grad is not None
        g, tau = metric
        n, slope = self._flow_residual(name, w, tau, moves)
        plain = w.grad.reshape(-1)
        natural = g.solve(plain)
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
            if previous is None:
                n, slope = flat.new_zeros(()), torch.zeros_like(flat)
            else:
                n = outer_sum_norm_squared(self._coefficients(flat), torch.cat([now[:1], previous]))
                (slope,) = torch.autograd.grad(n, flat)
        self._previous[name] = now.detach()
        return n.detach(), slope

    def _coefficients(self, like: Tensor) -> Tensor:
        """c of `g(t+1)|k1 − g(t)|k1 + 2 Ric(t) = Σ c_a u_a u_aᵀ`: δ cancels, and every metric brings in −u uᵀ."""
        k = j = 2 * self.shift
        return like.new_tensor([-1.0, 1 + 1 / k, -1 / k, -1 / j, 1 / j])

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
