"""The fast path of FakeQuantize: integers with one step size, and a gradient that passes inside a window.

It computes what the generic path computes (tests hold it to that: values bit for bit, gradients to rounding), but saves
only x and s for the backward pass, and on the CPU walks through memory in pieces that stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lowbit.quantizers import Grid
from lowbit.quantizers.staircase import ceil_slack

PIECE = 1 << 17  # elements per thread: a few float32 pieces of this size fit the second-level cache of a core
Window: TypeAlias = tuple[float, float]
Slow: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def eager() -> bool:
    """Whether operations run one by one: outside of torch.compile and of functorch's transforms."""
    if torch.compiler.is_compiling():
        return False
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return not transformed and bool(torch._C._autograd._saved_tensors_hooks_is_enabled())  # type: ignore[attr-defined]


def fits(x: Tensor) -> bool:
    """Whether the fast path is made for x: float32 on the CPU. (On CUDA, torch.compile fuses the generic path.)"""
    return x.dtype == torch.float32 and x.device.type == "cpu" and eager()


def fake_quantize(x: Tensor, scale: Tensor, grid: Grid, up: bool, window: Window, slow: Slow) -> Tensor:
    """`s·clip(round(x/s), low, high)` with `∂/∂z = 1[window[0] ≤ z ≤ window[1]]` through the staircase.

    Args:
        x: float32, any shape, on the CPU.
        scale: s, shape ().
        grid: the codes that exist, one step apart.
        up: round up, as the staircase does, in place of to the nearest.
        window: where the gradient passes, in step units.
        slow: the generic path, `slow(x, scale)`, for differentiating twice.
    """
    result: Tensor = _FakeQuantize.apply(x, scale, grid, up, window, slow)  # type: ignore[no-untyped-call]
    return result


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, grid: Grid, up: bool, window: Window, slow: Slow) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.grid, ctx.up, ctx.window, ctx.slow = grid, up, window, slow
        ctx.again = None  # x, s and the values that `feed` has computed again from them
        return _quantize(x, scale, grid, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        # Unpacked once only, by whoever comes first: activation checkpointing allows no second time.
        x, scale, values = ctx.again if ctx.again is not None else (*ctx.saved_tensors, None)
        ctx.again = None
        if torch.is_grad_enabled():
            wanted = [t for t, needed in zip((x, scale), ctx.needs_input_grad, strict=False) if needed]
            found = iter(torch.autograd.grad(ctx.slow(x, scale), wanted, grad, create_graph=True))
            grad_x, grad_scale = (next(found) if needed else None for needed in ctx.needs_input_grad[:2])
            return grad_x, grad_scale, None, None, None, None
        values = _quantize(x, scale, ctx.grid, ctx.up) if values is None else values
        x, values, grad = _alike(x, values, grad)
        inverse = scale.reciprocal().item()
        bounds = _bounds(ctx.window, inverse)
        grad_x = torch.empty_like(x)
        slope = 0.0
        for piece, value, flow, out in zip(*map(_pieces, (x, values, grad, grad_x)), strict=True):
            torch.ops.aten.hardtanh_backward.grad_input(flow, piece, *bounds, grad_input=out)
            # ∂q/∂s = codes − z·1[z in the window], with codes = values/s and z = x/s.
            slope += inverse * (torch.dot(flow, value) - torch.dot(out, piece)).item()
        return grad_x, scale.new_full((), slope), None, None, None, None


def _quantize(x: Tensor, scale: Tensor, grid: Grid, up: bool) -> Tensor:
    inverse, step = scale.reciprocal().item(), scale.item()
    (x,) = _alike(x)
    values = torch.empty_like(x)
    for piece, out in zip(_pieces(x), _pieces(values), strict=True):
        torch.mul(piece, inverse, out=out).clamp_(grid.low, grid.high)
        (out.mul_(1 - ceil_slack(x.dtype)).ceil_() if up else out.round_()).mul_(step)
    return values


def _bounds(window: Window, inverse: float) -> Window:
    """The nearest numbers outside of `window[0] ≤ x·inverse ≤ window[1]`: hardtanh_backward excludes its bounds."""
    ends = []
    for end, outward in zip(window, (-math.inf, math.inf), strict=True):
        if math.isinf(end):
            ends.append(end)
            continue
        bound = np.float32(end / inverse)
        step = np.float32(inverse)
        for _ in range(8):  # x·inverse is rounded, so that the first x outside is a few numbers away from end/inverse
            inside = bound * step >= end if outward < 0 else bound * step <= end
            before = np.nextafter(bound, np.float32(-outward))
            if inside:
                bound = np.nextafter(bound, np.float32(outward))
            elif not (before * step >= end if outward < 0 else before * step <= end):
                bound = before
            else:
                break
        ends.append(float(bound))
    return ends[0], ends[1]


def _alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, without gaps in memory and in the same order."""
    strides = {t.stride() for t in tensors}
    if len(strides) == 1 and (_channels_last(tensors[0]) or tensors[0].is_contiguous()):
        return tensors
    form = torch.channels_last if _channels_last(tensors[0]) else torch.contiguous_format
    return tuple(t.contiguous(memory_format=form) for t in tensors)


def _channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    flat = x.view(-1) if x.is_contiguous() else x.permute(0, 2, 3, 1).view(-1)
    return torch.split(flat, PIECE * torch.get_num_threads())


def feed(values: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """`compute(values)`, where `values` came out of a quantizer, at no cost in memory if it took the fast path.

    What `compute` would save of them for its backward pass is computed again from x, which is usually kept anyway, by
    the ReLU that made it.
    """
    node: Any = values.grad_fn if eager() else None
    if getattr(node, "_forward_cls", None) is not _FakeQuantize:
        return compute(values)
    # Not `values` itself: the hooks live as long as the graph does, and would keep what they refer to.
    known = values.data_ptr(), values.shape, values.stride()

    def pack(tensor: Tensor) -> Tensor | None:
        return None if (tensor.data_ptr(), tensor.shape, tensor.stride()) == known else tensor

    def unpack(kept: Tensor | None) -> Tensor:
        if kept is not None:
            return kept
        if node.again is None:
            x, scale = node.saved_tensors  # raises where one of them was changed in place since
            with torch.no_grad():
                node.again = x, scale, _quantize(x, scale, node.grid, node.up)
        again: Tensor = node.again[2]
        return again

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return compute(values)
