"""A network as a list of operations, and which of them the kernels can take over."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lowbit.deploy.kernels.averaging import averaging, order_of
from lowbit.deploy.kernels.epilogue import staircase_of
from lowbit.layers import (
    ExactBatchNorm1d,
    ExactBatchNorm2d,
    QuantConv2d,
    QuantLinear,
    is_integer,
    largest_sum,
)
from lowbit.layers.inspect import QUANT_LAYERS

Kind: TypeAlias = Literal["layer", "norm", "relu", "add", "subsample", "pool", "same", "mean", "flatten"]
MOST_PLANES = 16  # weight bits × activation bits
LONGEST_COUNT = 2**24  # the counters' range
LONGEST_BYTES = 2**28 // (255 * 128)  # products of bytes that a sum of 32 bits holds, with room for its offsets
LONGEST_STRIDE = 16

_RELUS: tuple[Any, ...] = (F.relu, torch.relu, "relu", "relu_", torch.relu_)
_ADDS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_SAME_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d)
_DROPOUTS: tuple[Any, ...] = (F.dropout, F.dropout2d)
_NORMS = {2: ExactBatchNorm1d, 4: ExactBatchNorm2d}
_NEVER_VIEWS = (  # modules whose result is no view of what they read
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.ReLU,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)
_INPLACE_FUNCTIONS = {operator.iadd: operator.add, torch.relu_: torch.relu}
_INPLACE_METHODS = {"relu_": "relu", "add_": "add", "sub_": "sub", "mul_": "mul", "div_": "div", "clamp_": "clamp"}


class _Tracer(fx.Tracer):
    """Torch's tracer, to which our layers are leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, QUANT_LAYERS) or type(m).__module__.startswith(("lowbit.layers", "lowbit.deploy"))
        return ours or super().is_leaf_module(m, module_qualified_name)


class Declined(Exception):
    """Why a model is not compiled, in the user's words."""


def trace(model: nn.Module) -> fx.GraphModule:
    """The operations of a model in evaluation, none of which writes over a tensor that another reads.

    Raises: Declined, or whatever the model's own code raises when it meets a symbol in the place of a tensor.
    """
    hooked = [name for name, module in model.named_modules() if _hooked(module)]
    if hooked:
        raise Declined(f"module '{hooked[0]}' has forward hooks, which compiled layers would not call")
    traced = fx.GraphModule(model, _Tracer().trace(model))
    modules = dict(traced.named_modules())
    inplace = [node for node in traced.graph.nodes if writes_in_place(node, modules)]
    for node in inplace:
        if not _replaceable(node, modules):
            raise Declined(f"'{node.name}' changes a tensor in place that may be read elsewhere")
    for node in inplace:
        if node.op == "call_module":
            modules[str(node.target)].inplace = False
        elif node.op == "call_function":
            node.target = _INPLACE_FUNCTIONS.get(node.target, node.target)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}
        else:
            node.target = _INPLACE_METHODS[str(node.target)]
    for node in traced.graph.nodes:
        if _keeps_examples(node):
            node.op, node.target, node.args = "call_function", examples_flat, node.args[:1]
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def examples_flat(x: Tensor) -> Tensor:
    """Shape (N, everything else): what `x.view(x.size(0), -1)` gives, without a node for the size."""
    return x.reshape(x.shape[0], -1)


_RESHAPES: tuple[Any, ...] = (torch.flatten, torch.reshape, "flatten", "reshape", "view", examples_flat)


def _keeps_examples(node: fx.Node) -> bool:
    """Whether a node is `x.view(x.size(0), -1)` or the like."""
    if node.op != "call_method" or node.target not in ("view", "reshape") or node.kwargs:
        return False
    source, *given = node.args
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = list(given[0])
    rest = len(given) == 2 and isinstance(given[1], int) and given[1] == -1
    return rest and _first_length(given[0]) is source


def _first_length(node: Any) -> Any:
    """x, if a node is `x.size(0)`, `x.size()[0]` or `x.shape[0]`."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_method" and node.target == "size":
        return node.args[0] if node.args[1:] == (0,) and not node.kwargs else None
    if node.target is not operator.getitem or node.args[1] != 0 or not isinstance(node.args[0], fx.Node):
        return None
    return node.args[0].args[0] if _is_shape(node.args[0]) else None


def _is_shape(node: fx.Node) -> bool:
    return (node.target, node.args[1:]) in ((getattr, ("shape",)), ("size", ())) and not node.kwargs


def only_says_sizes(node: fx.Node) -> bool:
    """Whether a node is a tensor's shape or number of examples, and changes nothing."""
    return _is_shape(node) or _first_length(node) is not None


def writes_in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node may change a tensor that it reads."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return bool(getattr(module, "inplace", False)) and not isinstance(module, _SAME_MODULES)
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    named = name.endswith("_") and not name.endswith("__")
    changing = node.target in (*_INPLACE_FUNCTIONS, operator.setitem) or name in ("iadd", "isub", "imul", "itruediv")
    return named or changing or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


def _hooked(module: nn.Module) -> bool:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not getattr(hook, "__module__", "").startswith("lowbit.") for hook in hooks)


def _replaceable(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the new value in the place of the old one is the same: nobody else sees the old one."""
    if node.op == "call_method" and node.target not in _INPLACE_METHODS:
        return False
    if node.op == "call_function" and node.target not in _INPLACE_FUNCTIONS and not node.kwargs.get("inplace"):
        return False
    changed = node.args[0] if node.args else None
    if not isinstance(changed, fx.Node) or not node.users or list(changed.users) != [node]:
        return False
    made_new = changed.target in (*_ADDS, *_RELUS, torch.cat, operator.mul, operator.sub)
    if changed.op == "call_module":
        made_new = isinstance(modules[str(changed.target)], _NEVER_VIEWS)
    return made_new and "out" not in node.kwargs


class Shapes(fx.Interpreter):
    """Runs a traced model once and notes what every node gives."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's result; tensors are noted as empty ones of the same shape and dtype."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = torch.empty(result.shape, dtype=result.dtype, device="meta")
        return result


def kind_of(node: fx.Node, modules: Mapping[str, nn.Module], shapes: Mapping[fx.Node, Tensor]) -> Kind | None:
    """What a node is to the kernels, or None where torch has to run it."""
    result, sources = shapes.get(node), [shapes.get(n) for n in node.all_input_nodes if not _is_length(n)]
    tensors = [result, *sources]
    if any(t is None or t.dtype != torch.float32 or t.ndim not in (2, 4) or not t.numel() for t in tensors):
        return None
    assert result is not None
    if (reshaped := _reshaped_kind(node, modules, shapes)) is not None:
        return reshaped
    if len({t.ndim for t in tensors if t is not None}) != 1 or len(sources) != len(node.all_input_nodes):
        return None
    if node.op == "call_module":
        return _module_kind(modules[str(node.target)], result) if not node.kwargs else None
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _RELUS:
        return "relu" if node.args else None
    if node.target in _DROPOUTS:
        return "same" if (*node.args[2:3], node.kwargs.get("training")) in ((False, None), (False,)) else None
    if node.target in _ADDS:
        plain = len(node.args) == 2 and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args)
        return "add" if plain and all(s is not None and s.shape == result.shape for s in sources) else None
    if subsampling(node) is not None:
        return "subsample"
    return None


def _is_length(node: fx.Node) -> bool:
    """Whether a node is the number of examples of one of the model's inputs, which the plan's shapes fix."""
    source = _first_length(node)
    return isinstance(source, fx.Node) and source.op == "placeholder"


def _reshaped_kind(node: fx.Node, modules: Mapping[str, nn.Module], shapes: Mapping[fx.Node, Tensor]) -> Kind | None:
    """A mean over maps, or maps as rows: what makes 2-D values of 4-D ones."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source not in shapes:
        return None
    before, after = shapes[source].shape, shapes[node].shape
    height, width = (*before[2:], 1, 1)[:2]
    average = averaging(node, modules, (height, width)) if len(before) == 4 else None
    if average is not None:
        return None if order_of(average, height, width) is None else "mean"
    if node.op == "call_module":
        reshapes = type(modules[str(node.target)]) is nn.Flatten
    else:
        reshapes = node.op in ("call_function", "call_method") and node.target in _RESHAPES
    if not reshapes or tuple(after) != (before[0], before[1:].numel()):
        return None
    if len(before) == 2:
        return "same"
    return "flatten" if height * width == 1 or _only_layers_read(node, modules, shapes) else None


def _only_layers_read(node: fx.Node, modules: Mapping[str, nn.Module], shapes: Mapping[fx.Node, Tensor]) -> bool:
    """Whether all that reads a map as a row, number by number aside, are layers, which may as well read the map."""
    kinds = {user: kind_of(user, modules, shapes) for user in node.users}
    through = {user: kind in ("relu", "same") for user, kind in kinds.items()}
    return bool(kinds) and all(
        kind == "layer" or (through[user] and _only_layers_read(user, modules, shapes)) for user, kind in kinds.items()
    )


def _module_kind(module: nn.Module, result: Tensor) -> Kind | None:
    if isinstance(module, nn.ReLU):
        return "relu"
    if isinstance(module, _SAME_MODULES):
        return "same"
    if isinstance(module, nn.MaxPool2d) and result.ndim == 4:
        return "pool" if pooling(module) is not None else None
    if isinstance(module, _NORMS[result.ndim]):
        return None if module.running_mean is None else "norm"
    if type(module) is QuantConv2d and result.ndim == 4:
        return "layer" if _pads_evenly(module) and _fits(module) else None
    if type(module) is QuantLinear and result.ndim == 2:
        return "layer" if _fits(module) else None
    return None


def _pads_evenly(layer: QuantConv2d) -> bool:
    """Whether zeros are added, as many before as after."""
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if max(layer.stride) > LONGEST_STRIDE:
        return False
    return layer.padding_mode == "zeros" and not (layer.padding == "same" and any(r % 2 for r in reach))


def padding_of(layer: Any) -> tuple[int, int]:
    """The zero padding of a convolution at either side, which "same" makes of its kernel."""
    if isinstance(layer.padding, str):
        if layer.padding == "valid":
            return 0, 0
        pads = [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return pads[0], pads[1]
    return int(layer.padding[0]), int(layer.padding[1])


def _fits(layer: Any) -> bool:
    """Whether the kernels can compute a layer's sums."""
    if not is_integer(layer) or layer.weight.dtype != torch.float32:
        return False
    staircase = staircase_of(layer.input_quantizer)
    if staircase is None or staircase.rounding == "up":
        return False
    return planes_fit(layer) or bytes_fit(layer)


def bytes_fit(layer: Any) -> bool:
    """Whether a layer's sums can be computed on bytes: what pads a map needs a code for 0."""
    staircase = staircase_of(layer.input_quantizer)
    assert staircase is not None
    grid = layer.weight_quantizer.quantizer.integer_grid
    padded = isinstance(layer, QuantConv2d) and layer.padding not in ("valid", (0, 0))
    signed = grid.low >= -128 and grid.low + grid.step * (2**grid.bits - 1) <= 127
    fan_in = layer.weight[0].numel()
    return signed and fan_in * grid.step < LONGEST_BYTES and not (padded and staircase.rounding == "sign")


def planes_fit(layer: Any) -> bool:
    """Whether a layer's sums can be computed on bit planes."""
    staircase = staircase_of(layer.input_quantizer)
    assert staircase is not None
    grid = layer.weight_quantizer.quantizer.integer_grid
    if staircase.bits > 4 or grid.bits > 4 or staircase.bits * grid.bits > MOST_PLANES:
        return False
    balance = 2 * grid.low // grid.step + 2**grid.bits - 1
    fan_in = layer.weight[0].numel()
    count = 2 * 2**grid.bits * 2**staircase.bits * fan_in
    return balance in (-1, 0, 1) and max(count, largest_sum(layer, fan_in)) < LONGEST_COUNT


def pooling(module: nn.MaxPool2d) -> tuple[int, int, int] | None:
    """Kernel, stride and padding of a max-pooling, if they are the same along both axes, else None."""
    found = []
    for option in (module.kernel_size, module.stride, module.padding):
        both = option if isinstance(option, tuple) else (option, option)
        if both[0] != both[1]:
            return None
        found.append(int(both[0]))
    plain = module.dilation in (1, (1, 1)) and not module.return_indices and not module.ceil_mode
    return (found[0], found[1], found[2]) if plain else None


def subsampling(node: fx.Node) -> tuple[int, int] | None:
    """(stride, extra channels) of `x[:, :, ::s, ::s]` and of `F.pad(x, (0, 0, 0, 0, 0, extra))`, else None."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem and isinstance(node.args[1], tuple) and len(node.args[1]) == 4:
        index: Any = node.args[1]
        full = slice(None, None, None)
        strides = [i.step for i in index[2:] if isinstance(i, slice) and i.start is None and i.stop is None]
        same = len(strides) == 2 and strides[0] == strides[1] and isinstance(strides[0], int) and strides[0] > 0
        return (strides[0], 0) if same and index[0] == full and index[1] == full else None
    if node.target in (F.pad, torch._C._nn.pad) and len(node.args) >= 2:
        mode, value = node.kwargs.get("mode", "constant"), node.kwargs.get("value")
        widths: Any = node.args[1]
        plain = len(node.args) == 2 and mode == "constant" and not value and isinstance(widths, (tuple, list))
        if plain and len(widths) == 6 and not any(widths[:5]) and isinstance(widths[5], int):
            return (1, widths[5]) if widths[5] >= 0 else None
    return None
