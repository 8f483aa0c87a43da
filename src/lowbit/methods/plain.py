"""The plain method: one pass, one step."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit._errors import CheckpointError
from lowbit.methods._base import METHODS, AbstractMethod, Backward, Batch, Loss, StepRecord, forward_backward, move


@METHODS.register("plain")
class Plain(AbstractMethod):
    """One forward and one backward pass, then the optimizer's step.

    Args:
        backward: how to run a backward pass, for launchers that wrap it.
        clip_norm: clip the norm of the gradients of all parameters that move, together, before they do.
        micro_batches: parts to cut each batch into.
    """

    def __init__(
        self, backward: Backward = Tensor.backward, clip_norm: float | None = None, micro_batches: int = 1
    ) -> None:
        self.backward = backward
        self.clip_norm = clip_norm
        self.micro_batches = micro_batches

    def step(self, model: nn.Module, batch: Batch, loss_fn: Loss, optimizer: Optimizer) -> StepRecord:
        """One pass, one step."""
        optimizer.zero_grad()
        record = forward_backward(model, batch, loss_fn, self.backward, self.micro_batches)
        move(model, optimizer, self.clip_norm)
        return record

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every step starts afresh."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take up. Raises: CheckpointError when there is: the state is another method's."""
        if state:
            raise CheckpointError(
                f"the checkpoint holds {', '.join(state)}, which the method 'plain' does not use: "
                "it was written by another method"
            )
