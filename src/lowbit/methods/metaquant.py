"""MetaQuant: the gradient through the quantizer is the output of a small network, trained along with the model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit._errors import CheckpointError, ConfigError
from lowbit.estimators import ESTIMATORS
from lowbit.layers import FakeQuantize, plain_name, quant_layers
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
from lowbit.methods._meta_network import NETS, NONLINEARITIES, MetaNetwork, Net, Nonlinearity

CHUNK = 1 << 14  # weights that go through the network at once
STRAIGHT = ("identity", "clipped")  # estimators whose gradient is ∂L/∂ŵ, up to clipping
STATE = {"phi", "adam", "top_rate", "history"}


@dataclass(frozen=True)
class _Past:
    """What a layer's last update was made of: ∂L/∂ŵ and w, flat, η, and the LSTM's memory before it, (2, n, hidden)."""

    grad: Tensor
    weight: Tensor
    rate: float
    memory: Tensor | None


@METHODS.register("metaquant")
class MetaQuant(AbstractMethod):
    """The gradient of the latent weights comes from a small network M_φ that learns from the next step's loss.

    One network, shared by all layers, takes each weight by itself. With g = ∂L/∂ŵ behind the quantizer and w̃ = A(w):

        ∂L/∂w = M_φ(g, w̃)·∂w̃/∂w                         (Eq. 3, 4)
        fc: M = FCs(g);  multifc: M = g·FCs(w̃);  lstmfc: M = g·FCs(LSTM(w̃))     (Eq. 9 to 11)
        preprocess none: w̃ = w;  dorefa: w̃ = tanh(w)/(2·max|tanh w|) + ½, ∂w̃/∂w = (1 − tanh²w)/max|tanh w|

    (the latter of 2w̃ − 1, which is what the quantizer makes discrete; the factor 2 is one of φ's scale).
    φ is trained through the update it made (Eq. 6 to 8): as `w_t = w_{t−1} − η·π(M_φ(g_{t−1}, w̃_{t−1})·∂w̃/∂w)`,

        ∂L_t/∂φ = Σ_layers ⟨∂L_t/∂w_t, −η·(∂w̃/∂w)_{t−1}·∂M_φ(g_{t−1}, w̃_{t−1})/∂φ⟩.

    A step: the model's forward and backward pass; ∂L_t/∂φ and a step of Adam on φ; M with the new φ in place of the
    latent weights' gradients; the optimizer's step. The paper's order is the same, cut elsewhere: its first iteration
    moves no weight, its t-th makes the update that our (t−1)-th makes. There is no warm-up.

    As in the paper: π is whatever the optimizer makes of a gradient (momentum, Adam, decay) and counts as π(g) = g +
    constant; the LSTM's memory goes from step to step, gradients into it do not; φ's rate falls with η. The paper puts
    M's own output for ∂L_t/∂w̃_t in Eq. 8, which could not tell a wrong sign of M; the authors' code, and this, take
    the straight-through gradient g_t·(∂w̃/∂w)_t. Ours: φ's rate is `meta_lr` times η over the largest η so far; and
    `aligned`. φ starts at random, every second time with the sign that leads uphill, which it takes some dozens of
    steps to unlearn: little in the paper's hundred epochs from a trained model, much in a short run.

    Weights that are float, frozen, not in the optimizer, or not reached by the loss keep their ordinary gradient; a
    layer that a step does not reach forgets its past. The weights' estimator must be `identity` or `clipped`.

    Costs two passes of all latent weights through M per step, and two copies of them: little, for fc and multifc
    without nonlinearity. `lstmfc` takes some 30·hidden² operations per weight and step, and keeps 2·hidden numbers per
    weight, in checkpoints as well: take a small `hidden` for a large model.

    Args:
        net: multifc, fc (FCGrad) or lstmfc.
        hidden: hidden size (100).
        depth: fully connected layers; 2, or 1 in lstmfc.
        nonlinearity: σ between them: none (the paper's), relu or tanh. With none, fc is a learned multiple of g.
        preprocess: A: dorefa or none. The paper goes by the quantizer: dorefa with DoReFa's, none with BWN's, for which
            it has no multifc.
        meta_lr: γ, φ's learning rate (10⁻³).
        seed: of φ's first values.
        aligned: of φ's two signs, start with the one that leads downhill; False leaves it to chance, as the paper does.
        backward, clip_norm, micro_batches: as for `plain`.

    The step reports, per layer and as means over layers, `meta_cosine`, of M's gradient to the straight-through one,
    and `meta_gain`, the ratio of their lengths.

    Source: [chen2019metaquant], Algorithm 1 and Sec. 5.1.
    """

    def __init__(
        self,
        net: Net = "multifc",
        hidden: int = 100,
        depth: int | None = None,
        nonlinearity: Nonlinearity = "none",
        preprocess: Literal["dorefa", "none"] = "dorefa",
        meta_lr: float = 1e-3,
        seed: int = 0,
        aligned: bool = True,
        backward: Backward = Tensor.backward,
        clip_norm: float | None = None,
        micro_batches: int = 1,
    ) -> None:
        depth = depth if depth is not None else 1 if net == "lstmfc" else 2
        _check(net, hidden, depth, nonlinearity, preprocess, meta_lr)
        self.preprocess = preprocess
        self.meta_lr = meta_lr
        self.backward = backward
        self.clip_norm = clip_norm
        self.micro_batches = micro_batches
        middle = 0.5 if preprocess == "dorefa" else 0.0  # where w̃ of w = 0 is
        self._net = MetaNetwork(net, hidden, depth, nonlinearity, seed, middle if aligned else None)
        self._adam = torch.optim.Adam(self._net.parameters(), lr=meta_lr)
        self._top_rate = 0.0
        self._history: dict[str, _Past] = {}

    def check(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Raises: ConfigError without latent weights that move, or where their estimator is not straight-through."""
        _latent(model, learning_rates(optimizer))

    def step(self, model: nn.Module, batch: Batch, loss_fn: Loss, optimizer: Optimizer) -> StepRecord:
        """One pass, one step of φ, one step."""
        rates = learning_rates(optimizer)
        latent = _latent(model, rates)
        optimizer.zero_grad()
        record = forward_backward(model, batch, loss_fn, self.backward, self.micro_batches)
        reached = {name: w for name, w in latent if w.grad is not None}
        if not reached:
            raise ConfigError("method 'metaquant': the loss depends on none of the model's latent weights")
        self._place(next(iter(reached.values())))
        with torch.autocast(next(self._net.parameters()).device.type, enabled=False):
            memories = self._learn(reached, max(rates[id(w)] for w in reached.values()))
            self._history = {
                name: _Past(self._flat(_gradient(w)).clone(), self._flat(w).clone(), rates[id(w)], memories.get(name))
                for name, w in reached.items()
            }
            figures = torch.stack([self._replace(name, w) for name, w in reached.items()], 1)
        move(model, optimizer, self.clip_norm)
        per_layer = dict(zip(("meta_cosine", "meta_gain"), figures, strict=True))
        names = tuple(name.rpartition(".")[0] for name in reached)
        means = {name: values.mean() for name, values in per_layer.items()}
        return StepRecord(record.loss, record.correct, means, names, per_layer)

    def _learn(self, reached: dict[str, nn.Parameter], rate: float) -> dict[str, Tensor]:
        """φ's step by the loss just differentiated; what the LSTM remembers after the last update, by layer."""
        memories: dict[str, Tensor] = {}
        self._adam.zero_grad()
        for name, w in reached.items():
            past = self._history.get(name)
            if past is None:
                continue
            if past.weight.numel() != w.numel():
                raise CheckpointError(
                    f"method 'metaquant' remembers layer '{name}' with {past.weight.numel()} weights, the model has "
                    f"{w.numel()} there: its state is that of another model"
                )
            now = self._flat(_gradient(w)) * self._calibration(self._flat(w))
            wanted = -past.rate * now * self._calibration(past.weight)
            after = []
            for part, out, memory in self._chunks(past):
                torch.autograd.backward(out, wanted[part])  # adds to φ's gradients
                if memory is not None:
                    after.append(memory.detach())
            if after:
                memories[name] = torch.cat(after, 1)
        self._top_rate = max(self._top_rate, rate)
        for group in self._adam.param_groups:
            group["lr"] = self.meta_lr * (rate / self._top_rate if self._top_rate else 1.0)
        self._adam.step()
        return memories

    @torch.no_grad()
    def _replace(self, name: str, w: nn.Parameter) -> Tensor:
        """Put M's gradient in place of the layer's own; returns its cosine to that, and the ratio of their lengths."""
        past = self._history[name]
        found = torch.cat([out for _, out, _ in self._chunks(past)]) * self._calibration(past.weight)
        _gradient(w).copy_(found.reshape(w.shape))
        tiny = torch.finfo(found.dtype).tiny
        length, own = found.norm(), past.grad.norm()
        return torch.stack([found @ past.grad / (length * own).clamp_min(tiny), length / own.clamp_min(tiny)])

    def _chunks(self, past: _Past) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """M on a layer's weights, so many at a time: which, M's output, and the LSTM's new memory."""
        tilde = self._preprocessed(past.weight)
        for start in range(0, tilde.numel(), CHUNK):
            part = slice(start, start + CHUNK)
            memory = None if past.memory is None else past.memory[:, part]
            yield (part, *self._net(past.grad[part], tilde[part], memory))

    def _preprocessed(self, w: Tensor) -> Tensor:
        """w̃."""
        return w if self.preprocess == "none" else w.tanh() / (2 * _largest(w)) + 0.5

    def _calibration(self, w: Tensor) -> Tensor:
        """∂w̃/∂w."""
        return torch.ones_like(w) if self.preprocess == "none" else (1 - w.tanh().square()) / _largest(w)

    def _flat(self, x: Tensor) -> Tensor:
        """(n,) in φ's dtype."""
        return x.detach().reshape(-1).to(next(self._net.parameters()).dtype)

    def _place(self, w: Tensor) -> None:
        """Bring φ to the device of the weights, in float32, or float64 if the weights are."""
        phi, dtype = next(self._net.parameters()), torch.promote_types(w.dtype, torch.float32)
        if (phi.device, phi.dtype) != (w.device, dtype):
            self._net.to(w.device, dtype)
            self._adam.load_state_dict(self._adam.state_dict())  # which brings Adam's averages to φ
            self._history = {name: _moved(past, w.device, dtype) for name, past in self._history.items()}

    def state_dict(self) -> dict[str, Any]:
        """φ, its optimizer's state, and what the last update was made of."""
        return {
            "phi": {name: value.clone() for name, value in self._net.state_dict().items()},
            "adam": copy.deepcopy(self._adam.state_dict()),
            "top_rate": self._top_rate,
            "history": {name: vars(past).copy() for name, past in self._history.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up φ and its past. Raises: CheckpointError when the state is another method's or another network's."""
        if set(state) != STATE:
            raise CheckpointError(
                "the checkpoint holds no state of the method 'metaquant': it was written by another method"
            )
        own = {name: tuple(value.shape) for name, value in self._net.state_dict().items()}
        given = {name: tuple(value.shape) for name, value in state["phi"].items()}
        if own != given:
            raise CheckpointError(
                f"the checkpoint's network of the method 'metaquant' has parameters of shapes {given}, this one's are "
                f"{own}: give net, hidden and depth as they were"
            )
        phi = next(iter(state["phi"].values()))
        self._net.to(phi.device, phi.dtype).load_state_dict(state["phi"])
        self._adam.load_state_dict(state["adam"])
        for averages in self._adam.state.values():
            averages["step"] = averages["step"].cpu()  # where Adam keeps it, whatever device the state was loaded to
        self._top_rate = state["top_rate"]
        self._history = {name: _Past(**past) for name, past in state["history"].items()}


def _check(net: str, hidden: int, depth: int, nonlinearity: str, preprocess: str, meta_lr: float) -> None:
    choices = (
        ("net", net, NETS),
        ("nonlinearity", nonlinearity, NONLINEARITIES),
        ("preprocess", preprocess, ("dorefa", "none")),
    )
    for option, value, known in choices:
        if value not in known:
            raise ConfigError(f"{option}={value!r} of method 'metaquant' must be one of {', '.join(known)}")
    for option, number in (("hidden", hidden), ("depth", depth)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ConfigError(f"{option}={number!r} of method 'metaquant' must be a whole number, 1 or more")
    if not 0 <= meta_lr < float("inf"):
        raise ConfigError(f"meta_lr={meta_lr} of method 'metaquant' must be a number that is not negative")
    if net == "multifc" and preprocess == "none":
        raise ConfigError(
            "net=multifc of method 'metaquant' needs preprocess=dorefa: it multiplies the gradient by a function of w̃ "
            "without a bias, and w̃ = w would turn the gradient round where the weight changes its sign"
        )


def _latent(model: nn.Module, moved: dict[int, float]) -> list[tuple[str, nn.Parameter]]:
    """The latent weights that move. Raises: ConfigError when there are none, or their estimator is no straight one."""
    latent = moving_latent_weights(model, moved, "metaquant")
    for name, layer in quant_layers(model):
        if isinstance(layer.weight_quantizer, FakeQuantize):
            rule = type(layer.weight_quantizer.rule)
            given = ESTIMATORS.name_of(rule, rule.__name__)
            if given not in STRAIGHT:
                raise ConfigError(
                    f"method 'metaquant' makes the gradient through the quantizer itself: take the estimator "
                    f"'identity' or 'clipped', not '{given}' (layer '{plain_name(name)}')"
                )
    return latent


def _gradient(w: nn.Parameter) -> Tensor:
    assert w.grad is not None
    return w.grad


def _largest(w: Tensor) -> Tensor:
    # An all-zero layer has no maximum to divide by.
    return w.tanh().abs().amax().clamp_min(torch.finfo(w.dtype).eps)


def _moved(past: _Past, device: torch.device, dtype: torch.dtype) -> _Past:
    memory = None if past.memory is None else past.memory.to(device, dtype)
    return _Past(past.grad.to(device, dtype), past.weight.to(device, dtype), past.rate, memory)
