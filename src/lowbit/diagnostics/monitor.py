"""Watching low-bit weights move: flips, oscillation, and what the metric does to the gradient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vecdot

from lowbit._errors import CheckpointError, ConfigError
from lowbit.layers import FakeQuantize, plain_name, quant_layers
from lowbit.layers.inspect import QuantLayer


@dataclass(frozen=True)
class LayerFigures:
    """Figures per layer, on their device.

    Args:
        names: the layers, without the prefixes of wrappers.
        values: by name of the figure, each of shape (len(names),); NaN where a layer has none.
    """

    names: tuple[str, ...] = ()
    values: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Metric:
    """A layer's metric g = δ − u uᵀ at the weights that the gradient was taken at.

    Args:
        u: a row for each block, shape (b, n).
        norm_squared: ‖u‖², shape (b,).
        solved: u·g⁻¹u, shape (b,).
        dominance_margin: shape (b,).
        slope: ∂z/∂w, shape of the weight.
    """

    u: Tensor
    norm_squared: Tensor
    solved: Tensor
    dominance_margin: Tensor
    slope: Tensor


@dataclass(frozen=True)
class _Watched:
    """A low-bit layer and the quantizer of its weights."""

    layer: QuantLayer
    quantize: FakeQuantize

    @property
    def countable(self) -> bool:
        """Whether a code's distance from the lowest one fits in a byte."""
        grid = self.quantize.quantizer.grid
        return grid.high - grid.low <= 255

    @torch.no_grad()
    def levels(self) -> Tensor:
        """Every weight's code, counted from the lowest one: uint8, shape (number of weights,)."""
        quantizer = self.quantize.quantizer
        return (quantizer.codes(self.layer.weight) - quantizer.grid.low).to(torch.uint8).reshape(-1)

    def metric(self) -> _Metric | None:
        """The metric of the layer's estimator at its weights, or None where it has none."""
        quantizer = self.quantize.quantizer
        with torch.enable_grad():
            weight = self.layer.weight.detach().requires_grad_()
            blocks = quantizer.granularity.blocks(weight)
            z = quantizer.normalize(blocks, quantizer.scale(blocks).detach())
            metric = self.quantize.estimator.metric(z.detach(), quantizer.grid)
            if metric is None:
                return None
            (slope,) = torch.autograd.grad(z.sum(), weight)
        with torch.no_grad():
            u = metric.u
            return _Metric(u, vecdot(u, u), vecdot(u, metric.solve(u)), metric.dominance_margin(), slope)

    def geometry(self, metric: _Metric | None) -> Tensor:
        """(correction, norm_squared, dominance_margin), shape (3,); NaN where there is no metric or no gradient."""
        nothing = self.layer.weight.new_full((), torch.nan)
        if metric is None:
            return torch.stack([nothing] * 3)
        grad = self.layer.weight.grad
        correction = nothing if grad is None else self._correction(grad, metric)
        return torch.stack([correction, metric.norm_squared.amax(), metric.dominance_margin.amin()])

    def _correction(self, grad: Tensor, metric: _Metric) -> Tensor:
        """‖g⁻¹∂ − ∂‖/‖∂‖ from g⁻¹∂ = ∂ + κ u (u·∂) alone, which times ∂z/∂w is `grad`.

        u·g⁻¹u = (1 + κ‖u‖²) ‖u‖², hence u·∂ = (u·g⁻¹∂) ‖u‖²/(u·g⁻¹u), and the change κ u (u·∂) has, in every block,
        the component (u·g⁻¹∂ − u·∂)/‖u‖ along u and no other.
        """
        u, tiny = metric.u, torch.finfo(metric.u.dtype).tiny
        along_z = (grad / metric.slope).nan_to_num_(0.0, 0.0, 0.0)  # a slope of 0 lets nothing through
        flat = self.quantize.quantizer.granularity.blocks(along_z).reshape(-1)
        # The last block may be longer than what is left of the weights: the metric fills it with zeros.
        natural = nn.functional.pad(flat, (0, u.numel() - flat.numel())).reshape(u.shape)
        after = vecdot(u, natural)
        before = after * metric.norm_squared / metric.solved.clamp_min(tiny)
        size = metric.norm_squared.clamp_min(tiny)
        change = (after - before).square() / size
        plain = vecdot(natural, natural) - (after.square() - before.square()) / size
        return (change.sum() / plain.sum().clamp_min(tiny)).sqrt()


class WeightMonitor:
    """Per low-bit layer, every so many steps: how many weights changed their level, and how many of them turned back.

    `flip_rate`: share of the weights whose level differs from that at the last observation.

    `oscillation`: share of the weights that flipped in the direction opposite to that of their previous flip. These are
    the two conditions of [nagel2022oscillations] for an oscillation in step t; they keep a running mean over steps for
    every weight, this is the mean over the weights of a layer. With `every` above 1 the steps in between are not seen:
    a weight that flips and returns within them counts as still (ours).

    Where the estimator has a metric g (the estimator `lne`), in step units z:

    - `correction`: ‖g⁻¹∂ − ∂‖/‖∂‖ over the layer, with ∂ = ∂L/∂codes worked out from the gradient that the step left
      behind, for g = δ − u uᵀ and any inverse of the form δ + κ u uᵀ (ours);
    - `norm_squared`: the largest ‖u‖² over the metric's blocks;
    - `dominance_margin`: the smallest margin of diagonal dominance (Def. 17 of [chen2024ricci]) over the blocks.

    Everything stays on the device, and nothing waits for it. Two bytes are kept per weight. Layers whose weights are
    float, or have codes further apart than 255, are left out.

    >>> monitor = WeightMonitor(model, every=10)
    >>> for step, batch in enumerate(loader):
    ...     monitor.before_step(step)
    ...     method.step(model, batch, loss_fn, optimizer)
    ...     figures = monitor.after_step(step)

    Args:
        model: converted; wrapped or not.
        every: steps between two observations; 0 observes nothing.

    Raises: ConfigError when `every` is negative.
    """

    def __init__(self, model: nn.Module, every: int = 10) -> None:
        if every < 0:
            raise ConfigError(f"every={every} of WeightMonitor: give the steps between two observations, or 0 for none")
        self.every = every
        watched = [
            (plain_name(name), _Watched(layer, layer.weight_quantizer))
            for name, layer in quant_layers(model)
            if every and isinstance(layer.weight_quantizer, FakeQuantize)
        ]
        self.names = tuple(name for name, layer in watched if layer.countable)
        self._layers = tuple(layer for _, layer in watched if layer.countable)
        self._sizes = [layer.layer.weight.numel() for layer in self._layers]
        self._levels: Tensor | None = None  # of every weight, layer after layer; uint8
        self._directions: Tensor | None = None  # direction of every weight's last flip: −1, 0 (none yet), 1; int8
        self._before: list[_Metric | None] = []

    def due(self, step: int) -> bool:
        """Whether step `step`, counted from 0, is observed: every, 2·every, … steps after the start."""
        return bool(self.names) and (step + 1) % self.every == 0

    def before_step(self, step: int) -> None:
        """Call before every step: it notes the levels at the very start, and metrics before a step that is observed."""
        if not self.names:
            return
        if self._levels is None:
            self._levels = torch.cat([layer.levels() for layer in self._layers])
            self._directions = torch.zeros_like(self._levels, dtype=torch.int8)
        if self.due(step):
            self._before = [layer.metric() for layer in self._layers]

    @torch.no_grad()
    def after_step(self, step: int) -> LayerFigures:
        """The figures of step `step`, no names and no values where it is not observed.

        Gradients must still be in `.grad`. Raises: ConfigError when `before_step` was not called.
        """
        if not self.due(step):
            return LayerFigures()
        if self._levels is None or self._directions is None:
            raise ConfigError("WeightMonitor.after_step without before_step: call both, around every step")
        now = torch.cat([layer.levels() for layer in self._layers])
        # Tensors with tensors, and no `where`: on the CPU these are ten times as fast as the obvious way.
        flipped, still = now != self._levels, now == self._levels
        moved = (now > self._levels).view(torch.int8) - (now < self._levels).view(torch.int8)
        returned = (moved == self._directions.neg()).logical_and_(flipped)
        self._levels = now
        self._directions = moved.add_(self._directions * still.view(torch.int8))
        values = {"flip_rate": self._share(flipped), "oscillation": self._share(returned)}
        if any(before is not None for before in self._before):
            rows = [layer.geometry(before) for layer, before in zip(self._layers, self._before, strict=True)]
            columns = torch.stack(rows).unbind(1)
            values |= dict(zip(("correction", "norm_squared", "dominance_margin"), columns, strict=True))
        self._before = []
        return LayerFigures(self.names, values)

    def _share(self, mask: Tensor) -> Tensor:
        """The share of True per layer, shape (L,)."""
        parts = torch.split(mask, self._sizes)
        return torch.stack([part.count_nonzero() / size for part, size in zip(parts, self._sizes, strict=True)])

    def state_dict(self) -> dict[str, Any]:
        """Levels and last directions, from which a resumed run goes on exactly; nothing before the first step."""
        if self._levels is None or self._directions is None:
            return {}
        return {"levels": self._levels, "directions": self._directions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` gave. Raises: CheckpointError when it is that of another model."""
        levels, directions = state.get("levels"), state.get("directions")
        expected = sum(self._sizes)
        if levels is not None and levels.numel() != expected:
            raise CheckpointError(
                f"the checkpoint has watched {levels.numel()} low-bit weights, the model has {expected}: it is that of "
                "another model"
            )
        self._levels, self._directions = levels, directions
