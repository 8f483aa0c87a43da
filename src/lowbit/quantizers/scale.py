"""Scale policies: where the real number that stretches the integers comes from.

| policy | scale | gradient of the scale |
| --- | --- | --- |
| none | 1 | none |
| fixed | a number the quantizer knows | none |
| mean-abs | mean of |x| over the elements that share it | none, or by autograd with `detach=False` |
| max-abs | max of |x| | as above |
| fitted | computed from the first tensor seen, then kept | none |
| learned | a parameter, initialised from the first tensor seen | by autograd, times 1/√(N·Qp) |

The learned gradient factor 1/√(N·Qp) is that of [esser2020lsq], Sec. 2.2: N elements share the scale (the batch is not
counted for an activation), Qp is the largest code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowbit._errors import ConfigError
from lowbit.quantizers.granularity import Granularity
from lowbit.quantizers.grid import Grid

POLICIES = ("none", "fixed", "mean-abs", "max-abs", "fitted", "learned")


def positive(scale: Tensor) -> Tensor:
    """|scale|, at least 2⁻⁶⁰ (or the smallest normal number of its dtype, if that is larger).

    The floor keeps 1/scale finite for an all-zero tensor, and 1/scale², which autograd forms for a learned scale; it is
    below every scale that data can produce, so that no other result changes.
    """
    return scale.abs().clamp_min(max(2.0**-60, torch.finfo(scale.dtype).tiny))


class Scale(nn.Module):
    """The scale of one quantizer under one policy and granularity.

    Args:
        policy: one of `POLICIES`.
        granularity: which elements share a scale.
        grid: the codes to be scaled. A learned scale belongs to its grid: loaded for another, it is learned afresh.
        shape: shape of the tensor to come; needed for a learned scale that is not per tensor.
        batched: whether the tensor's first dimension is the batch (activations).
        detach: whether a scale computed from the data is held constant in the backward pass.
    """

    value: Tensor | None
    initialized: Tensor
    levels: Tensor

    def __init__(
        self,
        policy: str,
        granularity: Granularity,
        grid: Grid,
        shape: tuple[int, ...] | None = None,
        batched: bool = False,
        detach: bool = True,
    ) -> None:
        super().__init__()
        if policy not in POLICIES:
            raise ConfigError(f"scale policy '{policy}' is not one of {', '.join(POLICIES)}")
        self.policy = policy
        self.granularity = granularity
        self.grid = grid
        self.batched = batched
        self.detach = detach
        self._ready = policy not in ("fitted", "learned")
        if policy == "learned":
            self.value = nn.Parameter(torch.ones(granularity.scale_shape(shape)))
        elif policy == "fitted":
            self.register_buffer("value", torch.ones(granularity.scale_shape(shape)))
        else:
            self.value = None
        if not self._ready:
            self.register_buffer("initialized", torch.tensor(False))
            self.register_buffer("levels", torch.tensor([grid.low, grid.high, grid.step]))

    def forward(self, blocks: Tensor, rule: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Tensor:
        """The scale for a block view.

        Args:
            blocks: the tensor, as `granularity.blocks` gives it.
            rule: `rule(blocks, shared_dims)`: the data-derived scale, also the learned scale's first value.
        """
        if self.policy == "none":
            return blocks.new_ones(())
        dims = self.granularity.shared_dims(blocks.ndim)
        if self.value is None:
            return positive(rule(blocks.detach() if self.detach else blocks, dims))
        if not self._ready:
            first = rule(blocks.detach(), dims)
            if not self._initialize(first) and not self.training:
                return positive(first)
        # A half-precision scale is exact in float32, in which half-precision tensors are quantized; 1/s must be too.
        value = self.value.to(blocks.dtype)
        if self.policy == "fitted":
            return positive(value)
        shared = math.prod([blocks.shape[d] for d in dims if not (self.batched and d == 0)])
        factor = 1.0 / math.sqrt(shared * self.grid.high)
        constant = value.detach()
        # Not s·f + (s − s·f): that is s only up to rounding, and the value must be s exactly.
        return positive(constant + (value - constant) * factor)

    @torch.no_grad()
    def _initialize(self, first: Tensor) -> bool:
        """Take the first value; whether there is one now. Evaluation passes and all-zero tensors teach nothing."""
        assert self.value is not None
        if not bool(self.initialized):
            if not self.training:
                return False
            first = first.to(self.value.dtype).reshape(self.value.shape)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(first)  # every process must start from the same scale
                first = first / dist.get_world_size()
            seen = first[first > 0]
            if not len(seen):
                return False
            self.value.copy_(first.where(first > 0, seen.mean()))
            self.initialized.fill_(True)
        self._ready = True
        return True

    def reset(self) -> None:
        """Forget the learned or fitted value, so that the next tensor seen initialises it."""
        if self.value is not None:
            self.initialized.fill_(False)
            self._ready = False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.value is not None and f"{prefix}value" not in state_dict:
            # A float checkpoint knows no scales: keep it loadable, and learn the scale afresh from the loaded tensor.
            self.reset()
            return
        if self.value is not None and not torch.equal(
            state_dict.get(f"{prefix}levels", self.levels).cpu(), self.levels.cpu()
        ):
            self.reset()
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._ready = self.value is None


def mean_abs(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """mean |x| over `dims`, dimensions kept unless all are reduced."""
    return x.abs().mean() if len(dims) == x.ndim else x.abs().mean(dims, keepdim=True)


def max_abs(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """max |x| over `dims`, dimensions kept unless all are reduced."""
    return x.abs().max() if len(dims) == x.ndim else x.abs().amax(dims, keepdim=True)
