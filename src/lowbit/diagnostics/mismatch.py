"""The gradient mismatch: the estimator's gradient against differences of the loss over the discrete weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from lowbit._errors import ConfigError
from lowbit.diagnostics.monitor import LayerFigures
from lowbit.layers import FakeQuantize, plain_name, quant_layers
from lowbit.layers.inspect import QuantLayer

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class _Given(nn.Module):
    """Stands in for a weight quantizer: gives `values`, whatever the latent weight."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, weight: Tensor) -> Tensor:
        """`values`."""
        return self.values


class _Probe:
    """The loss of one batch as a function of the discrete weights of a copy of the model."""

    def __init__(self, model: nn.Module, batch: tuple[Tensor, Tensor], loss_fn: Loss, seed: int) -> None:
        inputs, self.labels = batch
        self.model = copy.deepcopy(model).double()
        self.inputs = inputs.double() if inputs.is_floating_point() else inputs
        self.loss_fn = loss_fn
        self.device = inputs.device
        self._seed = seed
        self._devices = [inputs.device] if inputs.device.type == "cuda" else []

    def loss(self) -> Tensor:
        """The loss; every call draws the same random numbers (dropout) and leaves torch's generators as they were."""
        with torch.random.fork_rng(devices=self._devices):
            torch.manual_seed(self._seed)
            return self.loss_fn(self.model(self.inputs), self.labels)


def gradient_mismatch(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    loss_fn: Loss,
    samples: int,
    generator: torch.Generator,
) -> LayerFigures:
    """Per low-bit layer, the cosine between the estimator's gradient and the loss's own, over sampled weights.

    For a weight w with the discrete value q, the latter is the change of the loss when q alone moves to its neighbours
    on the grid, everything else fixed: `(L(q⁺) − L(q⁻))/(q⁺ − q⁻)`, where at an end of the grid (always, with 1 bit) q
    itself takes the place of the neighbour that is missing. The former is what backpropagation leaves on w. The cosine
    is taken over the sampled weights of a layer: 1 where the estimator points where the loss really falls, 0 where it
    knows nothing of it, NaN where either is zero. Ours, not from a paper.

    The model is evaluated in the mode it is in (in training mode with the statistics of this batch, the same dropout
    mask at every pass), on a copy in float64: at the start of training one weight of LeNet-5 or ResNet-20 changes the
    loss by about 1e-4 of its size, where float32 blurs it by 1e-7, and later by less. The model itself, its gradients
    and torch's random numbers stay as they are. Inside lie one forward and one backward pass, and for each sampled
    weight one forward pass (1 bit) or two.

    Args:
        model: converted, neither compiled nor wrapped.
        batch: inputs and labels.
        loss_fn: `loss_fn(outputs, labels)`.
        samples: weights to sample in each layer; all of them where it has fewer.
        generator: on the CPU; draws the weights, and the seed of the passes.

    Returns:
        `mismatch_cosine`, for the layers whose weights are low-bit.

    Raises: ConfigError when `samples` is below 2: one number has no direction.
    """
    if samples < 2:
        raise ConfigError(f"samples={samples} of gradient_mismatch: a cosine needs 2 weights of a layer or more")
    probe = _Probe(model, batch, loss_fn, seed=int(torch.randint(2**62, (), generator=generator)))
    layers = {
        plain_name(name): layer
        for name, layer in quant_layers(probe.model)
        if isinstance(layer.weight_quantizer, FakeQuantize)
    }
    if not layers:
        return LayerFigures()
    weights = [layer.weight.requires_grad_() for layer in layers.values()]
    with torch.enable_grad():
        slopes = torch.autograd.grad(probe.loss(), weights, allow_unused=True)
    cosines = []
    with torch.no_grad():
        for layer, slope in zip(layers.values(), slopes, strict=True):
            chosen = torch.randperm(layer.weight.numel(), generator=generator)[:samples].to(probe.device)
            found = _differences(probe, layer, chosen)
            cosines.append(_cosine(torch.zeros_like(found) if slope is None else slope.reshape(-1)[chosen], found))
    return LayerFigures(tuple(layers), {"mismatch_cosine": torch.stack(cosines)})


def _differences(probe: _Probe, layer: QuantLayer, chosen: Tensor) -> Tensor:
    """(L(q⁺) − L(q⁻))/(q⁺ − q⁻) for the weights with the flat indices `chosen`, shape (len(chosen),)."""
    quantize = cast(FakeQuantize, layer.weight_quantizer)
    values, up, down = _neighbours(quantize, layer.weight)
    given = _Given(values)
    flat = values.view(-1)
    slopes = []
    layer.weight_quantizer = given
    try:
        base = probe.loss()  # with the layer's codes, which an annealed estimator's forward pass is only on its way to
        for index in chosen.tolist():
            here = flat[index].clone()
            ends, losses = [], []
            for neighbour in (up.view(-1)[index], down.view(-1)[index]):
                flat[index] = neighbour
                ends.append(neighbour)
                losses.append(base if bool(neighbour == here) else probe.loss())
            flat[index] = here
            slopes.append((losses[0] - losses[1]) / (ends[0] - ends[1]))
    finally:
        layer.weight_quantizer = quantize
    return torch.stack(slopes)


def _neighbours(quantize: FakeQuantize, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The discrete weights, and where one level up and one level down (as far as the grid goes) would put them."""
    quantizer, grid = quantize.quantizer, quantize.quantizer.grid
    blocks = quantizer.granularity.blocks(weight)
    scale = quantizer.scale(blocks)
    codes = quantizer.discretize(quantizer.normalize(blocks, scale))

    def values(codes: Tensor) -> Tensor:
        return quantizer.granularity.restore(quantizer.dequantize(codes, scale), weight).contiguous().clone()

    up, down = (codes + grid.step).clamp_max(grid.high), (codes - grid.step).clamp_min(grid.low)
    return values(codes), values(up), values(down)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """The cosine of the angle between two vectors, NaN where one of them is 0."""
    return (one @ other) / (one.norm() * other.norm())
