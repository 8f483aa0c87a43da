"""The fast path of FakeQuantize: integers with one step size, and a gradient that passes inside a window.

It computes what the generic path computes (tests hold it to that: values bit for bit, gradients to rounding), but saves
only x and s for the backward pass, and on the CPU walks through memory in pieces that stay in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lowbit.quantizers import Grid

PIECE = 32768  # elements: two float32 pieces and their results fit the second-level cache of one core
Window: TypeAlias = tuple[float, float]
Slow: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def eager() -> bool:
    """Whether operations run one by one: outside of torch.compile and of functorch's transforms."""
    if torch.compiler.is_compiling():
        return False
    # functorch disables saved-tensor hooks within its transforms, which is how to recognise them.
    return bool(torch._C._autograd._saved_tensors_hooks_is_enabled())  # type: ignore[attr-defined]


def fake_quantize(x: Tensor, scale: Tensor, grid: Grid, window: Window, slow: Slow) -> Tensor:
    """`s·clip(round(x/s), low, high)` with `∂/∂z = 1[window[0] ≤ z ≤ window[1]]` through the staircase.

    Args:
        x: float32, any shape.
        scale: s, shape ().
        grid: the codes that exist, one step apart.
        window: where the gradient passes, in step units.
        slow: the generic path, `slow(x, scale)`, for differentiating twice.
    """
    result: Tensor = _FakeQuantize.apply(x, scale, grid, window, slow)  # type: ignore[no-untyped-call]
    return result


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, grid: Grid, window: Window, slow: Slow) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.grid, ctx.window, ctx.slow = grid, window, slow
        inverse = scale.reciprocal()
        values = torch.empty_like(x)
        if not _dense(x, values):
            return torch.mul(x, inverse).round_().clamp_(grid.low, grid.high).mul_(scale)
        for piece, out in zip(_pieces(x), _pieces(values), strict=True):
            torch.mul(piece, inverse, out=out).round_().clamp_(grid.low, grid.high).mul_(scale)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            values = ctx.slow(x, scale)
            wanted = [t for t in (x, scale) if t.requires_grad]
            found = iter(torch.autograd.grad(values, wanted, grad, create_graph=True))
            return (
                next(found) if x.requires_grad else None,
                next(found) if scale.requires_grad else None,
                None,
                None,
                None,
            )
        grid, inverse = ctx.grid, scale.reciprocal()
        # hardtanh_backward passes the gradient strictly inside its bounds: the next numbers outward include the ends.
        low, high = (_outward(end, sign) for end, sign in zip(ctx.window, (-1, 1), strict=True))
        if not _dense(x, grad):
            x, grad = x.contiguous(), grad.contiguous()
        grad_x = torch.empty_like(x)
        slopes = []
        for piece, flow, out in zip(_pieces(x), _pieces(grad), _pieces(grad_x), strict=True):
            z = piece * inverse
            torch.ops.aten.hardtanh_backward.grad_input(flow, z, low, high, grad_input=out)
            along = torch.dot(out, z)
            slopes.append(torch.dot(flow, z.round_().clamp_(grid.low, grid.high)) - along)
        return grad_x, torch.stack(slopes).sum(), None, None, None


def _outward(end: float, sign: int) -> float:
    return float(torch.nextafter(torch.tensor(end), torch.tensor(sign * math.inf)))


def _dense(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors fill memory without gaps and in the same order."""
    return x.stride() == y.stride() and (
        x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
    )


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    flat = x.view(-1) if x.is_contiguous() else x.permute(0, 2, 3, 1).view(-1)
    return torch.split(flat, PIECE * torch.get_num_threads()) if x.device.type == "cpu" else (flat,)


@contextmanager
def recomputing(values: Tensor, x: Tensor, quantize: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, what saves `values = quantize(x)` for the backward pass keeps x instead and computes it again.

    x is usually kept anyway, by the ReLU that made it, so that the quantized copy costs no memory.
    """

    def pack(tensor: Tensor) -> Tensor | None:
        return None if tensor.data_ptr() == address and tensor.shape == values.shape else tensor

    def unpack(kept: Tensor | None) -> Tensor:
        if kept is not None:
            return kept
        with torch.no_grad():
            return quantize(source)

    source, address = x.detach(), values.data_ptr()
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
