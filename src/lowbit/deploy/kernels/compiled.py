"""`lowbit.compile`: a network whose low-bit layers run on the kernels."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from lowbit._errors import ConfigError
from lowbit.deploy.files.fixed import FixedCodes
from lowbit.deploy.kernels.loader import kernels
from lowbit.deploy.kernels.packed_linear import PackedLinear, packs
from lowbit.deploy.kernels.plan import Plan, make_plan
from lowbit.deploy.kernels.segment import Lowered
from lowbit.deploy.kernels.tracing import Declined, trace
from lowbit.deploy.proof.observe import Entry, Inputs, Trace, as_arguments, flatten, whole_numbers
from lowbit.layers import FakeQuantize, QuantLinear, is_integer, quant_layers, quantizers_of
from lowbit.layers.inspect import QUANT_LAYERS

_log = logging.getLogger("lowbit")
_KEPT_PLANS = 8  # shapes whose programs are kept; each owns a workspace


class CompiledModule(nn.Module):
    """A trained network in evaluation, its low-bit layers computed by the kernels.

    The result is that of the trained network in evaluation, bit for bit; only linear layers with low-bit weights and
    float inputs (`PackedLinear`) differ, by rounding. Whatever the kernels do not know runs on PyTorch, unchanged. It
    takes and returns what the trained network does. Programs are made at the first call with a shape and kept.

    Args:
        model: the trained network; it is copied.
        threads: of the kernels. PyTorch's own operations use PyTorch's threads.
        isa: the instruction set to use, for tests; "" for the best.
    """

    def __init__(self, model: nn.Module, threads: int = 1, isa: str = "") -> None:
        super().__init__()
        self.training = False
        self._model = _fixed(model, threads)
        self.threads = threads
        self.isa = isa
        self._prepare()

    def _prepare(self) -> None:
        self._plans: dict[tuple[Any, ...] | None, Plan] = {}
        self._clock = itertools.count()
        self._attributes: dict[str, Any] = {}
        self._lone = False
        self._traced: fx.GraphModule | None = None
        self.why_not = ""
        """Why nothing was compiled; empty if something was."""
        if kernels() is None:
            self.why_not = "lowbit was installed without its kernels"
            return
        self._lone = isinstance(self._model, (*QUANT_LAYERS, PackedLinear))
        try:
            # A lone layer would be taken apart: the tracer keeps whole only what lies within a module.
            self._traced = trace(nn.Sequential(self._model) if self._lone else self._model)
        except Declined as error:
            self._decline(str(error))
        except Exception as error:  # tracing runs the user's own code
            self._decline(f"its forward method cannot be traced ({type(error).__name__}: {error})")

    def _decline(self, reason: str) -> None:
        self._traced = None
        self._plans.clear()
        self.why_not = reason
        _log.warning("lowbit.compile: %s; the model runs on PyTorch, layer by layer", reason)

    def __getstate__(self) -> dict[str, Any]:
        """The network and the options: programs and workspaces are made anew."""
        own = ("_plans", "_clock", "_attributes", "_traced", "_lone", "why_not")
        state = {key: value for key, value in self.__dict__.items() if key not in own}
        state["_modules"] = {key: value for key, value in self._modules.items() if key != "_traced"}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._prepare()

    def train(self, mode: bool = True) -> CompiledModule:
        """Raises: ConfigError for `mode=True`."""
        if mode:
            raise ConfigError(
                "a compiled model only evaluates: its weights are packed codes, which no gradient can move; "
                "train the model it was compiled from, and compile that again"
            )
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Raises: ConfigError; a compiled model is made from a model."""
        raise ConfigError("a compiled model takes no state dict: load it into the model, and compile that again")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the trained network returns."""
        key = None if kwargs else _key(args)
        known = self._plans.get(key)
        if known is not None and known.direct:  # nothing of torch's, which would want to know about gradients
            known.used = next(self._clock)
            return known.whole(*args)
        with torch.no_grad():
            if self._traced is None or key is None:
                return self._model(*args, **kwargs)
            plan = self._plan(args)
            return self._model(*args) if plan is None else plan.whole(*args)

    def _watched(self, args: Sequence[Tensor], entries: list[Entry]) -> Any:
        """The result, computed operation by operation, with what the low-bit layers read and gave on the way."""
        plan = self._plan(args)
        if plan is None:
            raise ConfigError(f"nothing was compiled that could be observed: {self.why_not}")
        env: dict[fx.Node, Any] = {}
        given = iter(args)
        for item in plan.items:
            if isinstance(item, Lowered):
                self._call(item, env, plan, entries)
            elif item.op == "placeholder":
                env[item] = next(given, item.args[0] if item.args else None)
            elif item.op == "output":
                return fx.node.map_arg(item.args[0], lambda n: env[n])
            else:
                env[item] = self._compute(item, env, entries)
        return None

    def _compute(self, node: fx.Node, env: dict[fx.Node, Any], entries: list[Entry]) -> Any:
        args: Any = fx.node.map_arg(node.args, lambda n: env[n])
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda n: env[n])
        if node.op == "get_attr":
            return self._held(str(node.target))
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        module = self._held(str(node.target))
        if not hasattr(module, "input_quantizer"):
            return module(*args, **kwargs)
        name = self._call_name(str(node.target), entries)
        if isinstance(module.input_quantizer, FakeQuantize):
            entries.append(Entry(name, "codes", whole_numbers(module.input_quantizer, args[0])))
        result = module(*args, **kwargs)
        entries.append(Entry(name, "output", result.detach().clone()))
        return result

    def _held(self, path: str) -> Any:
        found = self._attributes.get(path)
        if found is None:
            found = self._traced
            for part in path.split("."):
                found = getattr(found, part)
            self._attributes[path] = found
        return found

    def _call_name(self, layer: str, entries: list[Entry]) -> str:
        layer = "" if self._lone else layer
        calls = {e.layer for e in entries if e.layer == layer or e.layer.startswith(f"{layer}#")}
        return layer if not calls else f"{layer}#{len(calls) + 1}"

    def _call(self, item: Lowered, env: dict[fx.Node, Any], plan: Plan, entries: list[Entry]) -> None:
        given = [env[n] for n in item.segment.inputs]
        parts = [given] if item.rows else list(zip(*(t.split(1) for t in given), strict=True))
        results, codes = [], []
        layers = [n for n in item.segment.nodes if n in item.codes]
        for part in parts:  # the codes that can be read are those of one image
            results.append(item.run(*part, checked=False))
            for node in layers:
                source = node.args[0]
                assert isinstance(source, fx.Node)
                codes.append(item.read_codes(node, tuple(plan.shapes[source].shape)).to(torch.int16))
        env.update(zip(item.segment.outputs, (torch.cat(parts) for parts in zip(*results, strict=True)), strict=True))
        for i, node in enumerate(layers):
            value = torch.cat(codes[i :: len(layers)])
            entries.append(Entry(self._call_name(str(node.target), entries), "codes", value))

    def observe(self, inputs: Inputs) -> Trace:
        """The codes that each low-bit layer reads; like `lowbit.deploy.proof.observe` of the trained network.

        Layers whose output goes straight into the next quantizer give no output of their own.
        """
        args = as_arguments(inputs)
        batches = [torch.split(a, 1) if isinstance(a, Tensor) and a.ndim else [a] for a in args]
        if self._traced is None or len({len(b) for b in batches}) != 1:
            why = self.why_not or "its inputs have no batch in common"
            raise ConfigError(f"nothing was compiled that could be observed: {why}")
        traces = []
        with torch.no_grad():
            for example in zip(*batches, strict=True):
                entries: list[Entry] = []
                result = self._watched(example, entries)
                traces.append((entries, flatten(result)))
        joined = [
            Entry(parts[0].layer, parts[0].what, torch.cat([p.value for p in parts]))
            for parts in zip(*(entries for entries, _ in traces), strict=True)
        ]
        outputs = [torch.cat(parts) for parts in zip(*(outputs for _, outputs in traces), strict=True)]
        return Trace(tuple(joined), tuple(outputs))

    def _plan(self, args: Sequence[Tensor]) -> Plan | None:
        """The plan for inputs of these shapes, or None where the model turned out not to be what its trace says."""
        key = _key(args)
        plan = self._plans.get(key)
        if plan is None:
            assert self._traced is not None
            plan = make_plan(self._traced, [a.clone() for a in args], self.threads, self.isa)
            if not self._agrees(plan, args):
                self._decline("what it computes depends on more than its trace shows")
                return None
            while len(self._plans) >= _KEPT_PLANS:
                self._plans.pop(min(list(self._plans.items()), key=lambda item: item[1].used)[0], None)
            self._plans[key] = plan
        plan.used = next(self._clock)
        return plan

    def _agrees(self, plan: Plan, args: Sequence[Tensor]) -> bool:
        """Whether plan and model give the same for the first inputs of a shape: a trace may have missed something."""
        found, expected = plan.whole(*(a.clone() for a in args)), self._model(*(a.clone() for a in args))
        one, other = tuple(flatten(found)), tuple(flatten(expected))
        if type(found) is not type(expected) or len(one) != len(other):
            return False
        same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(one, other, strict=True))
        return same and all(torch.equal(*(t.nan_to_num(0.0) for t in pair)) for pair in zip(one, other, strict=True))

    def extra_repr(self) -> str:
        """Threads, and what runs where."""
        return f"threads={self.threads}" + (f", not compiled: {self.why_not}" if self.why_not else "")

    def describe(self, *args: Tensor) -> str:
        """The operations for inputs of these shapes, one per line."""
        plan = None if self._traced is None else self._plan(args)
        if plan is None:
            return f"PyTorch: {self.why_not}"
        lines = []
        for item in plan.items:
            if isinstance(item, Lowered):
                lines += [f"kernels: {line}" for line in str(item.program).splitlines()]
            elif item.op not in ("placeholder", "output"):
                lines.append(f"torch: {item.target}")
        return "\n".join(lines)


def _key(args: Sequence[Any]) -> tuple[Any, ...] | None:
    """What a plan depends on, or None if the arguments are not all tensors."""
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
    known = [(a.shape, a.dtype, a.device) for a in args if isinstance(a, Tensor)]
    return (autocast, *known) if len(known) == len(args) else None


def _fixed(model: nn.Module, threads: int) -> nn.Module:
    """A copy in evaluation, whose low-bit weights are quantized once and for all."""
    copied = copy.deepcopy(model, _shared(model)).eval()
    linear = [layer for _, layer in quant_layers(copied) if packs(layer)]
    packed = {id(layer): PackedLinear(cast(QuantLinear, layer), threads) for layer in linear}
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if id(child) in packed:
                setattr(module, name, packed[id(child)])
    copied = packed.get(id(copied)) or copied
    for _, layer in quant_layers(copied):
        quantize = layer.weight_quantizer
        if not isinstance(quantize, FakeQuantize):
            continue
        with torch.no_grad():
            if not is_integer(layer):  # it computes with the values
                layer.weight = nn.Parameter(quantize(layer.weight).clone())
                layer.weight_quantizer = nn.Identity()
                continue
            if not isinstance(quantize.quantizer, FixedCodes):
                scale = quantize.quantizer.scale(quantize.quantizer.granularity.blocks(layer.weight)).clone()
                quantize.quantizer = FixedCodes(quantize.quantizer, quantize.quantizer.codes(layer.weight), scale)
    return copied.eval().requires_grad_(False)


def _shared(model: nn.Module) -> dict[int, Any]:
    """What a copy need not copy, by identity: codes, and latent weights whose codes the copy will hold for itself."""
    shared: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, FixedCodes):
            shared[id(module.stored)] = module.stored
    for _, layer in quant_layers(model):
        if isinstance(layer.weight_quantizer, FakeQuantize) and is_integer(layer):
            shared[id(layer.weight)] = nn.Parameter(layer.weight.detach(), requires_grad=False)
    return shared


def compile(model: nn.Module, threads: int | None = None) -> CompiledModule:
    """A module that computes what `model.eval()` computes, with the low-bit layers on compiled kernels.

    Sums of whole numbers run on packed bits; scales, batch normalisations, ReLUs, residual sums and the next quantizer
    are fused to them, so that binary layers hand bits to each other; the result is the same, bit for bit. Linear layers
    with 1 to 4-bit weights and float inputs unpack their weights on the way, and differ by rounding. What the kernels
    do not know (float layers, transposed convolutions, scales per group) stays as it is. The result evaluates only: its
    `.train()` raises.

    Args:
        model: a model from `lowbit.convert` or `lowbit.load`, trained and calibrated.
        threads: how many the kernels use; by default as many as PyTorch (`torch.get_num_threads()`).

    Raises:
        ConfigError: a model without low-bit layers, one whose scales were never learned, or a wrong number of threads.

    Example:
        >>> fast = lowbit.compile(model, threads=1)
        >>> assert torch.equal(fast(images), model.eval()(images))
    """
    check_deployable(model, "compile")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"threads={threads!r}: expected a whole number of at least 1, or None for PyTorch's number")
    return CompiledModule(model, threads or torch.get_num_threads())


def check_deployable(model: nn.Module, verb: str) -> None:
    """Raises: ConfigError when there is nothing low-bit in a model, or a scale has never seen data."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"lowbit.{verb}() takes a torch.nn.Module; {type(model).__name__} was given")
    if not any(True for _ in quantizers_of(model)):
        raise ConfigError(
            f"lowbit.{verb}() takes a model with low-bit layers, and this one has none: make it with lowbit.convert()"
        )
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantize) and not isinstance(module.quantizer, FixedCodes):
            ready = getattr(module.quantizer.scaling, "initialized", None)
            if ready is not None and not bool(ready):
                raise ConfigError(
                    f"the scale of '{name}' has never seen data: train the model, or call "
                    "lowbit.calibrate(model, inputs) first"
                )
