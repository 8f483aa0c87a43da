"""The translated batches of the Ricci-flow method, and the gradients that the loss has on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lowbit._errors import ConfigError
from lowbit._user import user_function, working_directory_importable
from lowbit.layers import frozen_statistics, weights_per_part
from lowbit.methods._base import Backward, Batch, Loss, split

Transform: TypeAlias = Callable[[Tensor, str, int], Tensor]
LARGEST = 4  # |k1 − k2| and |j1 − j2| must stay below it, [chen2024ricci], Sec. 6


@dataclass(frozen=True)
class Shifts:
    """The translations of the input that serve as coordinates: k1, k2 along one axis, j1, j2 along another.

    Args:
        amounts: k1, k2, j1, j2, in pixels (or whatever the axis counts).
        axes: the axis of k and that of j, or the axis of k alone (then j1, j2 do not occur); None takes rows and
            columns of images (N, C, H, W).
        transform: takes the place of translation: `transform(inputs, direction, amount)`, direction "k" or "j"; a
            function, or the name `package.module:function` of one.

    Raises: ConfigError for amounts, axes or a transform that do not fit.

    Source: [chen2024ricci], Eq. 30 to 32 and Fig. 5; one axis alone and other transforms are ours.
    """

    amounts: tuple[int, int, int, int] = (1, -1, 1, -1)
    axes: tuple[int, ...] | None = None
    transform: Transform | str | None = None

    def __post_init__(self) -> None:
        given = self.amounts
        if not isinstance(given, tuple) or len(given) != 4 or any(type(a) is not int for a in given):
            raise ConfigError(f"shifts={given!r} of method 'ricci' must be four whole numbers k1, k2, j1, j2")
        for first, second, pair in ((given[0], given[1], "k1 and k2"), (given[2], given[3], "j1 and j2")):
            if not 0 < abs(first - second) < LARGEST:
                raise ConfigError(
                    f"shifts={given} of method 'ricci': {pair} must differ, by less than {LARGEST} pixels"
                )
        if self.axes is not None and self.transform is not None:
            raise ConfigError("method 'ricci' takes axes or transform, not both")
        if self.axes is not None and not (
            isinstance(self.axes, tuple)
            and len(self.axes) in (1, 2)
            and all(type(a) is int and a != 0 for a in self.axes)
            and len(set(self.axes)) == len(self.axes)
        ):
            raise ConfigError(
                f"axes={self.axes!r} of method 'ricci' must be one or two different axes of the inputs, other than 0 "
                "(the examples); for instance -1 or (2, 3)"
            )
        if not (self.transform is None or callable(self.transform) or isinstance(self.transform, str)):
            raise ConfigError(
                f"transform={self.transform!r} of method 'ricci' must be a function, or package.module:function"
            )
        if isinstance(self.transform, str):
            with working_directory_importable():
                object.__setattr__(self, "transform", user_function("transform", self.transform))

    @property
    def count(self) -> int:
        """How many translations there are: four, or two where a single axis was stated."""
        return 2 if self.axes is not None and len(self.axes) == 1 else 4

    @property
    def coefficients(self) -> tuple[float, ...]:
        """c in `g(t+1)|k1 − g(t)|k1 + 2 Ric = Σ c_p (first_p − second_p)`: 1, −1/(k1 − k2), 1/(j1 − j2)."""
        k1, k2, j1, j2 = self.amounts
        return (1.0, -1 / (k1 - k2), 1 / (j1 - j2))[: 1 + self.count // 2]

    def apply(self, inputs: Tensor, number: int) -> Tensor:
        """The inputs under translation `number`, 0 to 3 for k1, k2, j1, j2.

        Raises: ConfigError when the inputs are not images and no axis was stated, or are smaller than the shift.
        """
        amount, direction = self.amounts[number], number // 2
        if callable(self.transform):
            moved = self.transform(inputs, "kj"[direction], amount)
            if not isinstance(moved, Tensor) or moved.shape[:1] != inputs.shape[:1]:
                raise ConfigError("the transform of method 'ricci' must return a tensor of as many examples as it got")
            return moved
        axes = self.axes
        if axes is None:
            if inputs.ndim != 4:
                raise ConfigError(
                    f"method 'ricci' shifts images (N, C, H, W); inputs of shape {_shape(inputs)} were given: "
                    "state the axis to shift along, for instance axes=-1, or give a transform"
                )
            axes = (2, 3)
        axis = axes[direction]
        if not -inputs.ndim < axis < inputs.ndim:
            raise ConfigError(f"axes={axes} of method 'ricci': the inputs have the shape {_shape(inputs)}")
        if abs(amount) >= inputs.shape[axis]:
            raise ConfigError(
                f"shifts={self.amounts} of method 'ricci': a shift by {abs(amount)} moves inputs of shape "
                f"{_shape(inputs)} out of sight along axis {axis}; take larger inputs or smaller shifts"
            )
        return translate(inputs, axis, amount)


def _shape(inputs: Tensor) -> str:
    """For messages: of the examples only a part may be here."""
    return f"({', '.join(['N', *map(str, inputs.shape[1:])])})"


def translate(inputs: Tensor, axis: int, amount: int) -> Tensor:
    """Inputs moved by `amount` along `axis`, towards higher indices where positive; 0 comes in at the border."""
    length = inputs.shape[axis] - abs(amount)
    moved = torch.zeros_like(inputs)
    moved.narrow(axis, max(amount, 0), length).copy_(inputs.narrow(axis, max(-amount, 0), length))
    return moved


def shifted_gradients(
    model: nn.Module,
    batch: Batch,
    loss_fn: Loss,
    weights: Sequence[nn.Parameter],
    shifts: Shifts,
    together: bool,
    micro_batches: int,
    backward: Backward = Tensor.backward,
) -> list[Tensor | None]:
    """∂L|a/∂w of each of the `weights`, for every translation a of the batch: (count, *shape), or None if it has none.

    `.grad` and running statistics stay as they are. Under DDP the gradients are averaged over the processes.

    Args:
        together: one pass over all translations, in which batch normalisation sees them all; else one pass each.
        micro_batches: parts to cut the passes into.
        backward: called as `backward(loss, inputs=[...])`.
    """
    parallel = [m for m in model.modules() if isinstance(m, DistributedDataParallel)]
    run = _together if together else _one_by_one
    total: list[list[Tensor | None]] = []
    with ExitStack() as stack:
        stack.enter_context(frozen_statistics(model))
        for wrapper in parallel:
            stack.enter_context(wrapper.no_sync())  # its reducer waits for .grad, which these passes do not touch
        for part, share in split(batch, micro_batches):
            found = run(model, part, loss_fn, weights, shifts, share, backward)
            total = [_added(*pair) for pair in zip(total, found, strict=True)] if total else found
    stacked = [_stacked(each) for each in total]
    if parallel:
        _average(stacked, parallel[0])
    return stacked


def _together(
    model: nn.Module,
    batch: Batch,
    loss_fn: Loss,
    weights: Sequence[nn.Parameter],
    shifts: Shifts,
    share: float,
    backward: Backward,
) -> list[list[Tensor | None]]:
    inputs, labels = batch
    moved = torch.cat([shifts.apply(inputs, number) for number in range(shifts.count)])
    stand_ins = [[w.detach().requires_grad_() for _ in range(shifts.count)] for w in weights]
    by_latent = {id(w): own for w, own in zip(weights, stand_ins, strict=True)}
    with weights_per_part(model, by_latent, len(moved)):
        outputs = model(moved)
        if not isinstance(outputs, Tensor) or outputs.shape[:1] != moved.shape[:1]:
            raise ConfigError(
                "method 'ricci' tells the examples of a model's outputs apart, for which they must be one tensor whose "
                "first dimension is that of the inputs; take together=False"
            )
        loss = torch.stack([loss_fn(part, labels) for part in outputs.chunk(shifts.count)]).sum() * share
        backward(loss, inputs=[w for own in stand_ins for w in own])
    return [[w.grad for w in own] for own in stand_ins]


def _one_by_one(
    model: nn.Module,
    batch: Batch,
    loss_fn: Loss,
    weights: Sequence[nn.Parameter],
    shifts: Shifts,
    share: float,
    backward: Backward,
) -> list[list[Tensor | None]]:
    inputs, labels = batch
    found: list[list[Tensor | None]] = [[] for _ in weights]
    before = [w.grad for w in weights]
    try:
        for number in range(shifts.count):
            for w in weights:
                w.grad = None
            loss = loss_fn(model(shifts.apply(inputs, number)), labels) * share
            backward(loss, inputs=list(weights))
            del loss  # what the layers before the first of the weights keep would stay until the next pass has ended
            for gradients, w in zip(found, weights, strict=True):
                gradients.append(w.grad)
    finally:
        for w, gradient in zip(weights, before, strict=True):
            w.grad = gradient
    return found


def _stacked(gradients: list[Tensor | None]) -> Tensor | None:
    """One tensor of them, None where one is missing; the list is emptied, so that nothing is held twice."""
    present = [g for g in gradients if g is not None]
    complete = len(present) == len(gradients)
    gradients.clear()
    return torch.stack(present) if complete else None


def _added(first: list[Tensor | None], second: list[Tensor | None]) -> list[Tensor | None]:
    return [a if b is None else b if a is None else a + b for a, b in zip(first, second, strict=True)]


def _average(gradients: list[Tensor | None], wrapper: DistributedDataParallel) -> None:
    """The mean over all processes, in place."""
    size = torch.distributed.get_world_size(wrapper.process_group)
    for gradient in gradients:
        if gradient is not None:
            torch.distributed.all_reduce(gradient, group=wrapper.process_group)
            gradient.div_(size)
