"""Training under a discrete Ricci flow: RF-DNN, Algorithms 1 and 2 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit._errors import CheckpointError, ConfigError
from lowbit.estimators import ESTIMATORS
from lowbit.geometry import (
    Block,
    HessianMetric,
    LNEMetric,
    Tau,
    TauRule,
    check_block,
    diagonal_difference_norm_squared,
    from_blocks,
    largest_admissible_tau,
    outer_difference_norm_squared,
    require_positive_definite,
    to_blocks,
)
from lowbit.layers import quantizers_of
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
    moving_latent_weights,
)
from lowbit.methods._shifts import Shifts, Transform, shifted_gradients

ALPHA, EPSILON, SHIFTS = 0.01, 1.0, (1, -1, 1, -1)
FAST_FRACTION, FAST_INTERVAL = 0.25, 8
FIGURES = ("ricci_n", "gated", "pull", "correction", "norm_squared", "dominance_margin")
MODES = ("fast", "faithful", "gradient")


@dataclass(frozen=True)
class _Layer:
    """A layer that takes part: its latent weight, that as blocks (b, n), its learning rate η, its metric g_w and τ."""

    name: str
    weight: nn.Parameter
    blocks: Tensor
    rate: float
    metric: LNEMetric | HessianMetric
    tau: Tensor


@dataclass
class _Memory:
    """What is kept of a layer: u of g(t)|a, shape (count, b, n); N and ∂N/∂w (b, n) as they were last evaluated."""

    u: Tensor
    n: Tensor
    slope: Tensor | None


@METHODS.register("ricci")
class Ricci(AbstractMethod):
    """Natural gradient on the LNE manifold, with a discrete Ricci flow as regulariser and gate.

    For each layer, with latent weights w, `g_w = δ − u uᵀ`, `u = tanh(τ w)`:

    - passes over the batch translated by k1, k2 rows and j1, j2 columns; each gives a virtual update
      `w|a = w − η g_w⁻¹ ∂L|a` and from it a metric `g|a` (Eq. 30 to 32);
    - `−2 Ric = (g|k1 − g|k2)/(k1 − k2) − (g|j1 − g|j2)/(j1 − j2)`, and the flow asks for `g(t+1)|k1 − g(t)|k1 = −2
      Ric(t)` (Eq. 33, 34). What is missing from that is `N = ‖g(t+1)|k1 − g(t)|k1 + 2 Ric(t)‖²` (Eq. 35), here from
      inner products: O(n);
    - gradient `g_w⁻¹ ∂L · 1[N ≤ ε] + α ∂N/∂w` (Eq. 36 and the loss L + αN of Algorithm 2).

    Modes: `faithful` is Algorithm 2 as printed, four passes over the whole batch at every step. `fast` takes the
    translations of a part of the batch, in one pass, at every `interval`-th step, from which (N, ∂N/∂w) are kept in
    between; t counts those steps. `gradient` is Algorithm 1, `g_w⁻¹ ∂L` and nothing else.

    Choices the paper leaves open (ours): g(t) is that of the last evaluation, g(t+1)|k1 is this one's and carries
    ∂N/∂w with the virtual gradients held constant; the gate acts on the loss's part alone; the ordinary pass comes
    first; the shifted ones leave the running statistics of batch normalisation alone; what is shifted in is 0; τ is
    held constant in ∂N/∂w, and lowered for the g|a where their ‖u‖² would exceed ρ; η is the learning rate of the
    latent weights' parameter group. α, ε, τ and the shifts have no published values: see docs/ricci.md for how these
    were chosen.

    Weights that are float, frozen, not in the optimizer, or not reached by the loss keep their ordinary gradient: the
    flow is over the latent weights that move. The model's estimator should be `identity` or `clipped`: this method
    applies g⁻¹ itself.

    Args:
        mode: fast, faithful or gradient.
        alpha: α ≥ 0, the weight of N in the loss.
        epsilon: ε ≥ 0, the largest N at which a layer still follows the loss.
        metric: `lne` (Eq. 16) or `hessian`, diag(1 − u²), the Bregman metric proper (ours).
        tau: τ, a number or a rule, "auto" or "dominance"; with `rho` and `margin` see `geometry.TauRule`. With the
            exact inverse a number is lowered where the weights have grown so much that ‖u‖² would exceed ρ.
        block: what carries a metric of its own: `layer`, `channel` (output channel) or a group size. N of a layer is
            the mean over its blocks, so that α and ε mean the same for all.
        inverse: exact (Sherman–Morrison, ours) or weak (Eq. 29, which asks for diagonal dominance: tau=dominance). The
            strong one would train a network for every layer at every step: it is in `geometry.LNEMetric` alone.
        shifts: k1, k2, j1, j2 in pixels; |k1 − k2|, |j1 − j2| < 4.
        axes: for inputs that are not images, the axes to shift along: that of k and that of j, or a single one.
        transform: in place of translation; see `Shifts`.
        shift_fraction, interval, together: of the fast mode: the part of the batch that is translated (1/4), the steps
            between two evaluations (8), all translations in one pass (True).
        backward, clip_norm, micro_batches: as for `plain`.

    The step reports, for each layer, N, whether the gate was shut (1 or 0), the pull of the regulariser
    α‖∂N/∂w‖/‖g⁻¹∂L‖, the metric's correction ‖g⁻¹∂L − ∂L‖/‖∂L‖, and the largest ‖u‖² and smallest dominance margin of
    its blocks; the means of the first four over layers are `ricci_n`, `gated`, `pull`, `correction`.

    Raises: ConfigError for options, inputs or models that do not fit; it names the layer and the largest admissible τ
    where a given τ breaks positive definiteness.

    Source: [chen2024ricci], Algorithms 1 and 2.
    """

    def __init__(
        self,
        mode: Literal["fast", "faithful", "gradient"] = "fast",
        alpha: float = ALPHA,
        epsilon: float = EPSILON,
        metric: Literal["lne", "hessian"] = "lne",
        tau: Tau = "auto",
        rho: float = 0.9,
        margin: float = 0.1,
        block: Block = "layer",
        inverse: Literal["exact", "weak"] = "exact",
        shifts: tuple[int, int, int, int] = SHIFTS,
        axes: tuple[int, ...] | int | None = None,
        transform: Transform | str | None = None,
        shift_fraction: float | None = None,
        interval: int | None = None,
        together: bool | None = None,
        backward: Backward = Tensor.backward,
        clip_norm: float | None = None,
        micro_batches: int = 1,
    ) -> None:
        _check_choice("mode", mode, MODES)
        _check_choice("metric", metric, ("lne", "hessian"))
        _check_choice("inverse", inverse, ("exact", "weak"))
        for option, value in (("alpha", alpha), ("epsilon", epsilon)):
            if not _is_number(value) or not value >= 0:
                raise ConfigError(f"{option}={value!r} of method 'ricci' must be a number that is not negative")
        if metric == "hessian" and inverse != "exact":
            raise ConfigError("inverse='weak' of method 'ricci' is one of metric=lne; that of metric=hessian is exact")
        check_block(block, "method 'ricci'")
        _check_belongs(mode, ("fast",), shift_fraction=shift_fraction, interval=interval, together=together)
        flow = {"alpha": None if alpha == ALPHA else alpha, "epsilon": None if epsilon == EPSILON else epsilon}
        flow_inputs = {"shifts": None if shifts == SHIFTS else shifts, "axes": axes, "transform": transform}
        _check_belongs(mode, ("fast", "faithful"), **flow, **flow_inputs)
        fast = mode == "fast"
        self.shift_fraction = shift_fraction if shift_fraction is not None else FAST_FRACTION if fast else 1.0
        self.interval = interval if interval is not None else FAST_INTERVAL if fast else 1
        self.together = together if together is not None else fast
        if not _is_number(self.shift_fraction) or not 0 < self.shift_fraction <= 1:
            raise ConfigError(f"shift_fraction={shift_fraction!r} of method 'ricci' must be above 0 and at most 1")
        if type(self.interval) is not int or self.interval < 1:
            raise ConfigError(f"interval={interval!r} of method 'ricci' must be a number of steps, 1 or more")
        if not isinstance(self.together, bool):
            raise ConfigError(f"together={together!r} of method 'ricci' must be True or False")
        self.mode, self.alpha, self.epsilon, self.block, self.inverse = mode, alpha, epsilon, block, inverse
        self.kind = metric
        try:
            self.rule = TauRule(tau, rho, margin)
        except ConfigError as error:
            raise ConfigError(f"method 'ricci': {error}") from None
        self.shifts = Shifts(shifts, (axes,) if isinstance(axes, int) else axes, transform)
        self.backward, self.clip_norm, self.micro_batches = backward, clip_norm, micro_batches
        self._steps = 0
        self._memory: dict[str, _Memory] = {}

    def check(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Raises: ConfigError without latent weights that move, for estimator `lne`, or a τ that is too large."""
        self._layers(model, optimizer)

    def step(self, model: nn.Module, batch: Batch, loss_fn: Loss, optimizer: Optimizer) -> StepRecord:
        """The ordinary pass, the shifted passes if it is their turn, and the optimizer's step."""
        layers = self._layers(model, optimizer)
        optimizer.zero_grad()
        # The ordinary pass comes first: scales that take their first value from a batch should take it from this one.
        record = forward_backward(model, batch, loss_fn, self.backward, self.micro_batches)
        if all(layer.weight.grad is None for layer in layers):
            raise ConfigError("method 'ricci': the loss depends on none of the model's latent weights")
        if self.mode != "gradient" and self._steps % self.interval == 0:
            self._evaluate(model, batch, loss_fn, layers)
        figures = torch.stack([self._correct(layer) for layer in layers])
        move(model, optimizer, self.clip_norm)
        self._steps += 1
        by_layer = dict(zip(FIGURES, figures.T, strict=True))
        metrics = {name: by_layer[name].mean() for name in FIGURES[:4]}
        return StepRecord(record.loss, record.correct, metrics, tuple(_module_of(x.name) for x in layers), by_layer)

    def _layers(self, model: nn.Module, optimizer: Optimizer) -> list[_Layer]:
        rates = learning_rates(optimizer)
        latent = moving_latent_weights(model, rates, "ricci")
        if any(ESTIMATORS.name_of(type(q.rule), "") == "lne" for q in quantizers_of(model)):
            raise ConfigError(
                "method 'ricci' applies g⁻¹ itself: take the estimator 'identity' or 'clipped', not 'lne'"
            )
        if self.kind == "lne" and self._steps == 0 and not isinstance(self.rule.tau, str):
            self._require_positive_definite(self.rule.tau, latent)
        return [self._layer(name, w, rates[id(w)]) for name, w in latent]

    def _require_positive_definite(self, tau: float, latent: Sequence[tuple[str, nn.Parameter]]) -> None:
        blocks = {_module_of(name): to_blocks(w.detach(), self.block) for name, w in latent}
        try:
            for name, of_layer in blocks.items():
                require_positive_definite(of_layer, tau, name)
        except ConfigError as error:
            everywhere = largest_admissible_tau(*blocks.values())
            raise ConfigError(f"{error}, and {everywhere:.4g} over all layers; or take tau=auto") from None

    def _layer(self, name: str, weight: nn.Parameter, rate: float) -> _Layer:
        blocks = to_blocks(weight.detach(), self.block)
        if self.kind == "hessian":
            tau = self.rule.diagonal(blocks)
            return _Layer(name, weight, blocks, rate, HessianMetric(blocks, tau), tau)
        tau = self.rule(blocks) if self.inverse == "weak" else self.rule.admissible(blocks)
        return _Layer(name, weight, blocks, rate, LNEMetric(blocks, tau, self.inverse), tau)

    def _evaluate(self, model: nn.Module, batch: Batch, loss_fn: Loss, layers: Sequence[_Layer]) -> None:
        """N and ∂N/∂w of every layer that the shifted losses reach; g(t+1) takes the place of g(t)."""
        count = max(1, round(self.shift_fraction * len(batch[0])))
        part = batch[0][:count], batch[1][:count]
        weights = [layer.weight for layer in layers]
        found = shifted_gradients(
            model, part, loss_fn, weights, self.shifts, self.together, self.micro_batches, self.backward
        )
        found.reverse()
        for layer in layers:
            gradients = found.pop()  # each layer's are let go as soon as they are used
            if gradients is not None:
                moves = torch.stack([layer.rate * layer.metric.solve(to_blocks(g, self.block)) for g in gradients])
                self._memory[layer.name] = self._flow(layer, moves)

    def _flow(self, layer: _Layer, moves: Tensor) -> _Memory:
        """This step's metrics, N of Eq. 35 and ∂N/∂w, both 0 while there is no g(t) yet."""
        virtual = layer.blocks - moves
        tau = layer.tau
        if self.kind == "lne":  # every g|a is to be a metric, as g is
            tau = tau.minimum(self.rule.admissible(virtual).amin(0))
        now = torch.tanh(tau * virtual)
        before = self._memory.get(layer.name)
        if before is None:
            return _Memory(now, now.new_zeros(()), None)
        previous = before.u.to(now)
        if previous.shape != now.shape:
            raise CheckpointError(
                f"method 'ricci' remembers layer '{layer.name}' as {_described(previous)}, here it is "
                f"{_described(now)}: its state is that of another model"
            )
        slope = None
        with torch.enable_grad():
            w = layer.blocks.clone().requires_grad_(self.alpha > 0)
            n = self._residual(torch.tanh(tau * (w - moves[0])), previous)
            if self.alpha:
                (slope,) = torch.autograd.grad(n, w)
        return _Memory(now, n.detach(), slope)

    def _residual(self, now: Tensor, previous: Tensor) -> Tensor:
        """N of Eq. 35 from u of g(t+1)|k1, shape (b, n), and of g(t)|k1, k2, j1, j2, shape (count, b, n)."""
        first = torch.cat([now.unsqueeze(0), previous[0::2]])
        second = torch.cat([previous[:1], previous[1::2]])
        norm = outer_difference_norm_squared if self.kind == "lne" else diagonal_difference_norm_squared
        return norm(now.new_tensor(self.shifts.coefficients), first, second).mean()

    def _correct(self, layer: _Layer) -> Tensor:
        """Turn the layer's gradient into the paper's; returns the layer's figures."""
        w, metric = layer.blocks, layer.metric
        norm = metric.norm_squared().max() if isinstance(metric, LNEMetric) else w.new_full((), torch.nan)
        shape_of_metric = [norm, metric.dominance_margin().min()]
        grad, memory = layer.weight.grad, self._memory.get(layer.name)
        if grad is None:
            zero = w.new_zeros(())
            return torch.stack([zero, zero, zero, zero, *shape_of_metric])
        plain = to_blocks(grad, self.block)
        natural = metric.solve(plain)
        correction = _relative(natural - plain, plain)
        n = pull = w.new_zeros(())
        if memory is not None:
            n = memory.n.to(w)
        shut = n > self.epsilon
        result = natural * ~shut
        if memory is not None and memory.slope is not None:
            regulariser = self.alpha * memory.slope.to(w)
            pull = _relative(regulariser, natural)
            result = result + regulariser
        grad.copy_(from_blocks(result, grad.shape))
        return torch.stack([n, shut.to(n.dtype), pull, correction, *shape_of_metric])

    def state_dict(self) -> dict[str, Any]:
        """Steps so far; for each layer u of g(t)|a, N and ∂N/∂w; and the options that decide what these are."""
        return {
            "steps": self._steps,
            "options": self._options(),
            "memory": {name: vars(memory) for name, memory in self._memory.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up g(t). Raises: CheckpointError when the state is another method's."""
        if set(state) != {"steps", "options", "memory"}:
            raise CheckpointError(
                "the checkpoint holds no state of the method 'ricci': it was written by another method"
            )
        if self.mode != "gradient" and state["memory"] and state["options"] != self._options():
            raise CheckpointError(
                f"the checkpoint's state of the method 'ricci' was written with {state['options']}, this one has "
                f"{self._options()}: give these options as they were"
            )
        self._steps = int(state["steps"])
        memories = {} if self.mode == "gradient" else state["memory"]
        self._memory = {name: _Memory(**memory) for name, memory in memories.items()}

    def _options(self) -> dict[str, str]:
        shifts = self.shifts
        return {"metric": self.kind, "block": str(self.block), "shifts": str(shifts.amounts), "axes": str(shifts.axes)}


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{option}={value!r} of method 'ricci' must be {', '.join(choices[:-1])} or {choices[-1]}")


def _check_belongs(mode: str, modes: tuple[str, ...], **options: Any) -> None:
    """Raises: ConfigError where an option that is not None would have no effect in this mode."""
    given = next((name for name, value in options.items() if value is not None), None)
    if mode not in modes and given is not None:
        raise ConfigError(
            f"{given}={options[given]} of method 'ricci' belongs to mode={' and mode='.join(modes)}; mode={mode} was "
            "asked for, in which it would have no effect"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _relative(part: Tensor, whole: Tensor) -> Tensor:
    return part.norm() / whole.norm().clamp_min(torch.finfo(whole.dtype).tiny)


def _described(u: Tensor) -> str:
    shifts, blocks, size = u.shape
    return f"{blocks} x {size} weights under {shifts} shifts"


def _module_of(parameter: str) -> str:
    """The layer that a parameter belongs to: "stage1.0.conv1.weight" → "stage1.0.conv1"."""
    return parameter.rpartition(".")[0] or parameter
