"""What to tell a user whose activations get an estimator that the safety checker calls unsafe."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from lowbit.estimators import ESTIMATORS
from lowbit.layers.fake_quantize import FakeQuantize
from lowbit.quantizers import QUANTIZERS


class Plan(Protocol):
    """A conversion plan, as far as its activations go."""

    def activation_quantizers(self) -> list[tuple[str, FakeQuantize]]:
        """What will quantize activations, with the name of the place."""


def cautions(plan: Plan) -> list[str]:
    """A message, in the checker's words, for each pair of estimator and quantizer that it calls unsafe."""
    pairs: dict[str, tuple[FakeQuantize, list[str]]] = {}
    for name, module in plan.activation_quantizers():
        pair = f"{module.rule!r} {type(module.quantizer).__name__} {module.quantizer.grid}"
        pairs.setdefault(pair, (module, []))[1].append(name)
    messages = []
    for module, names in pairs.values():
        from lowbit.theory.verdicts import objections  # only where activations are quantized

        found = objections(module.rule, module.quantizer)
        if found:
            messages.append(_message(module, names, found))
    return messages


def _message(module: FakeQuantize, names: list[str], found: tuple[str, ...]) -> str:
    rule, quantizer = module.rule, module.quantizer
    estimator = ESTIMATORS.name_of(type(rule), default=type(rule).__name__)
    kind = QUANTIZERS.name_of(type(quantizer), default=type(quantizer).__name__)
    bits = quantizer.grid.bits
    where = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    behind = ""
    if quantizer.grid.one_sided and not quantizer.rectifies:
        behind = (
            " Where these inputs come out of a ReLU, it stops the gradient below 0 itself, and the pair acts like the "
            "estimator 'relu'."
        )
    pair = f"activation estimator '{estimator}' with quantizer '{kind}' of {bits} bit{'s' * (bits > 1)}"
    options = ", ".join(
        f"{field.name}={getattr(rule, field.name)}"
        for field in dataclasses.fields(rule)  # type: ignore[arg-type]
        if getattr(rule, field.name) != field.default
    )
    spec = f"'{estimator}({options})'" if options else estimator
    more = f"`lowbit check {spec} --quantizer '{kind}(bits={bits})'`"
    if type(rule) not in (cls for _, cls in ESTIMATORS.items()):
        more = "lowbit.diagnostics.check(estimator, quantizer)"
    advice = f"Take 'clipped'; {more} shows more"
    return f"{pair} is unsafe ({where}): {'; '.join(found)}.{behind} {advice}"
