"""The method family: which passes does a training step need, and how do the weights move?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit import _spec
from lowbit._errors import ConfigError
from lowbit._registry import Registry
from lowbit.layers import latent_parameters, plain_name

Batch: TypeAlias = tuple[Tensor, Tensor]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Backward: TypeAlias = Callable[..., None]


@dataclass(frozen=True)
class StepRecord:
    """What one step reports; everything is detached and stays on its device.

    Args:
        loss: mean over the batch, shape ().
        correct: how many examples had their class scored highest, shape (), int64; None where outputs are not
            (N, classes) or labels not (N,).
        metrics: the method's own figures, each of shape ().
        layer_names: the low-bit layers that `layer_metrics` speaks of, without the prefixes of wrappers.
        layer_metrics: figures per layer, each of shape (len(layer_names),).
    """

    loss: Tensor
    correct: Tensor | None
    metrics: dict[str, Tensor] = field(default_factory=dict)
    layer_names: tuple[str, ...] = ()
    layer_metrics: dict[str, Tensor] = field(default_factory=dict)


class AbstractMethod(ABC):
    """One training step, usable in the user's own loop as well as in ours."""

    def check(self, model: nn.Module, optimizer: Optimizer) -> None:  # noqa: B027 (most methods take any model)
        """Raises: ConfigError where the method cannot train this model; called before anything is written."""

    @abstractmethod
    def step(self, model: nn.Module, batch: Batch, loss_fn: Loss, optimizer: Optimizer) -> StepRecord:
        """Clear the gradients, run the passes, move the weights.

        Args:
            model: in training mode.
            batch: inputs (N, ...) and labels (N,).
            loss_fn: `loss_fn(outputs, labels)`, a mean over the batch.
            optimizer: over the model's parameters.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` gave."""


METHODS: Registry[type[AbstractMethod]] = Registry("method")


def build_method(
    spec: str, *, backward: Backward = Tensor.backward, clip_norm: float | None = None, micro_batches: int = 1
) -> AbstractMethod:
    """A method from its spec string, for example `"ricci(alpha=0.01)"`.

    Args:
        spec: a registered name, with options in brackets.
        backward: how to run a backward pass, for launchers that wrap it: called as `backward(loss)`, and by methods
            with passes of their own as `backward(loss, inputs=tensors)`. One that scales the loss suits `plain` alone.
        clip_norm: clip the norm of the gradients of all parameters that move, together, before they do.
        micro_batches: cut every batch into so many parts and add up their gradients, to save memory. Batch
            normalisation then takes its statistics from each part.

    Raises: UnknownNameError, ConfigError.
    """
    if micro_batches < 1:
        raise ConfigError(f"micro_batches={micro_batches}: give the number of parts of a batch, 1 or more")
    name, options = _spec.parse(spec)
    context = {"backward": backward, "clip_norm": clip_norm, "micro_batches": micro_batches}
    return _spec.call(f"method '{name}'", METHODS.get(name), options, context)


def split(batch: Batch, parts: int) -> Iterator[tuple[Batch, float]]:
    """A batch in `parts` nearly equal parts (fewer where it has fewer examples), each with its share of them."""
    inputs, labels = batch
    pieces = zip(inputs.chunk(parts), labels.chunk(parts), strict=True)
    return ((piece, len(piece[0]) / len(inputs)) for piece in pieces)


def forward_backward(
    model: nn.Module, batch: Batch, loss_fn: Loss, backward: Backward, micro_batches: int = 1
) -> StepRecord:
    """One ordinary pass, in so many parts: gradients are left in `.grad`."""
    records = []
    for (inputs, labels), share in split(batch, micro_batches):
        outputs = model(inputs)
        loss = loss_fn(outputs, labels)
        loss = loss if micro_batches == 1 else loss * share
        backward(loss)
        records.append((loss.detach(), _correct(outputs, labels)))
    loss = records[0][0] if len(records) == 1 else torch.stack([loss for loss, _ in records]).sum()
    counts = [correct for _, correct in records if correct is not None]
    return StepRecord(loss, torch.stack(counts).sum() if counts else None)


def _correct(outputs: Any, labels: Tensor) -> Tensor | None:
    classifies = isinstance(outputs, Tensor) and outputs.ndim == 2 and labels.shape == outputs.shape[:1]
    return (outputs.detach().argmax(1) == labels).sum() if classifies else None


def moving_latent_weights(model: nn.Module, moved: Collection[int], method: str) -> list[tuple[str, nn.Parameter]]:
    """The latent weights that are not frozen and whose ids are in `moved`, by names without wrappers' prefixes.

    Raises: ConfigError when there are none.
    """
    latent = [(plain_name(name), w) for name, w in latent_parameters(model) if w.requires_grad and id(w) in moved]
    if not latent:
        raise ConfigError(
            f"method '{method}' needs latent weights that move: convert the model to a few bits, leave some of those "
            "weights unfrozen, and give them to the optimizer"
        )
    return latent


def learning_rates(optimizer: Optimizer) -> dict[int, float]:
    """The learning rate of every parameter that the optimizer moves, by the parameter's id."""
    return {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}


def move(model: nn.Module, optimizer: Optimizer, clip_norm: float | None) -> None:
    """Clip, if asked to, and step."""
    if clip_norm is not None:
        # Parameters the optimizer does not hold are never cleared: their gradients pile up and must not count.
        moved = learning_rates(optimizer)
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if id(p) in moved], clip_norm)
    optimizer.step()
