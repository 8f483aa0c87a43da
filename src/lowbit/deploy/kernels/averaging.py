"""Global average pooling: which operations are one, and the order in which torch adds up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lowbit.deploy.kernels.loader import kernels

Average: TypeAlias = Literal["mean", "adaptive", "window"]
ORDERS = (8, 16, 4, 1, 0)  # lanes of the cascade sum on the processors torch knows; 0: one after the other
LARGEST_MAP = 2**15  # positions from which torch's threads may divide a sum
_EXAMPLES = 64

_AVERAGES: dict[Average, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
    "window": lambda x: F.avg_pool2d(x, (x.shape[2], x.shape[3])),
}
_ADAPTIVE: tuple[Any, ...] = (F.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool2d)
_WINDOWS: tuple[Any, ...] = (F.avg_pool2d, torch._C._nn.avg_pool2d)
_MEANS: tuple[Any, ...] = (torch.mean, "mean")


def averaging(node: fx.Node, modules: Mapping[str, nn.Module], size: Sequence[int]) -> Average | None:
    """Which mean over the whole of each H × W map a node is, else None."""
    if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
        module = modules[str(node.target)]
        if type(module) is nn.AdaptiveAvgPool2d:
            return "adaptive" if _pair(module.output_size) == (1, 1) else None
        if type(module) is nn.AvgPool2d:
            options = {key: getattr(module, key) for key in ("kernel_size", "padding", "divisor_override")}
            return "window" if _covers(options, size) else None
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _ADAPTIVE:
        found = _options(node, "output_size")
        return "adaptive" if _pair(found.get("output_size")) == (1, 1) else None
    if node.target in _WINDOWS:
        names = "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
        return "window" if _covers(_options(node, *names), size) else None
    if node.target in _MEANS:
        found = _options(node, "dim", "keepdim")
        dims = found.get("dim")
        if not isinstance(dims, (tuple, list)) or any(not isinstance(d, int) for d in dims):
            return None
        both = sorted(d % 4 for d in dims) == [2, 3]
        return "mean" if both and found.get("dtype") is None and "out" not in found else None
    return None


def _options(node: fx.Node, *names: str) -> dict[str, Any]:
    """What a call is given beside its input, by name; nothing where it depends on the data."""
    found = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    known = len(node.args) <= len(names) + 1 and len(node.all_input_nodes) == 1
    return found if known and "input" not in found else {}


def _covers(options: Mapping[str, Any], size: Sequence[int]) -> bool:
    """Whether the window of an average pooling is the whole map."""
    plain = _pair(options.get("padding", 0)) == (0, 0) and options.get("divisor_override") is None
    return plain and _pair(options.get("kernel_size")) == tuple(size)


def _pair(option: Any) -> tuple[Any, ...]:
    return tuple(option) * (1 if len(option) == 2 else 2) if isinstance(option, (tuple, list)) else (option, option)


@cache
def order_of(average: Average, height: int, width: int) -> int | None:
    """The order in which torch adds up a map of this size on this machine, or None where it is none of ours."""
    if height * width >= LARGEST_MAP or kernels() is None:
        return None
    return find_order(_AVERAGES[average], height, width)


def find_order(
    average: Callable[[Tensor], Tensor], height: int, width: int, orders: Sequence[int] = ORDERS
) -> int | None:
    """The first of some orders that gives what torch gives, bit for bit, or None.

    Torch's additions depend on the processor, on how torch was built and on its version. The numbers they are told
    apart by lie up to 2^16 apart, so that nearly every sum rounds differently in another order.

    Args:
        average: of each channel of a batch of maps.
        height, width: of a map.
        orders: lanes of the cascade sum; 0 for one after the other.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    shape = _EXAMPLES, height, width
    options: dict[str, Any] = {"generator": generator, "device": "cpu"}
    powers = torch.randint(-8, 9, shape, dtype=torch.int32, **options)
    x = torch.ldexp(torch.randn(shape, dtype=torch.float32, **options), powers)
    x[0] = -0.0
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        expected = torch.cat([average(x[None]).reshape(-1), average(x[None, 1:2]).reshape(-1)])
    for order in orders:
        found = means(x, order)
        if torch.equal(torch.cat([found, found[1:2]]).view(torch.int32), expected.view(torch.int32)):
            return order
    return None


def means(maps: Tensor, order: int) -> Tensor:
    """The mean of each map (C, H, W), by the kernels, in one order of additions."""
    module = kernels()
    assert module is not None
    channels, height, width = maps.shape
    program = module.Program(1, "")
    source, target = program.input(channels, height, width, 0), program.floats(channels, 1, 1, 0)
    program.mean(source, target, order)
    program.output(target)
    program.finish()
    found = torch.empty(channels, dtype=torch.float32, device="cpu")
    given = maps.contiguous()
    program.run([given.data_ptr()], [found.data_ptr()], 1)
    return found
