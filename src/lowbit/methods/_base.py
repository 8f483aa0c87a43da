"""The method family: which passes does a training step need, and how do the weights move?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit import _spec
from lowbit._registry import Registry

Batch: TypeAlias = tuple[Tensor, Tensor]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Backward: TypeAlias = Callable[[Tensor], None]


@dataclass(frozen=True)
class StepRecord:
    """What one step reports; everything is detached and stays on its device.

    Args:
        loss: mean over the batch, shape ().
        correct: how many examples had their class scored highest, shape (), int64; None where outputs are not
            (N, classes) or labels not (N,).
        metrics: the method's own figures, each of shape ().
    """

    loss: Tensor
    correct: Tensor | None
    metrics: dict[str, Tensor] = field(default_factory=dict)


class AbstractMethod(ABC):
    """One training step, usable in the user's own loop as well as in ours."""

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


def build_method(spec: str, *, backward: Backward = Tensor.backward, clip_norm: float | None = None) -> AbstractMethod:
    """A method from its spec string, for example `"ricci(alpha=0.01)"`.

    Args:
        spec: a registered name, with options in brackets.
        backward: how to run a backward pass, for launchers that wrap it.
        clip_norm: clip the norm of the gradients of all parameters that move, together, before they do.

    Raises: UnknownNameError, ConfigError.
    """
    name, options = _spec.parse(spec)
    context = {"backward": backward, "clip_norm": clip_norm}
    return _spec.call(f"method '{name}'", METHODS.get(name), options, context)


def forward_backward(model: nn.Module, batch: Batch, loss_fn: Loss, backward: Backward) -> StepRecord:
    """One ordinary pass: gradients are left in `.grad`."""
    inputs, labels = batch
    outputs = model(inputs)
    loss = loss_fn(outputs, labels)
    backward(loss)
    classifies = isinstance(outputs, Tensor) and outputs.ndim == 2 and labels.shape == outputs.shape[:1]
    return StepRecord(loss.detach(), (outputs.detach().argmax(1) == labels).sum() if classifies else None)


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
