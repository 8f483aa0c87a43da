"""What a comparison of an exported model with the trained one found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table

from lowbit._errors import ArtefactError
from lowbit.layers.text import as_text

LISTED = 5  # float tensors that a printed report names


@dataclass(frozen=True)
class Difference:
    """The first tensor of one call that is not what it should be.

    Args:
        input: which of the inputs, by name.
        layer: the layer, or "outputs" for what the model returns.
        what: "codes": those of its quantized input; "output": what it returns.
        position: the first place that differs; None where the tensor is missing or has another shape.
        expected, got: what the trained model has there, and the other one; texts where the position is None.
        differing, elements: how many places differ, of how many.
    """

    input: str
    layer: str
    what: Literal["codes", "output"]
    position: tuple[int, ...] | None
    expected: float | str
    got: float | str
    differing: int
    elements: int

    def __str__(self) -> str:
        place = "" if self.position is None else f" at {list(self.position)}"
        count = "" if self.position is None else f"; {self.differing} of {self.elements} differ"
        return (
            f"{self.what} of '{self.layer}' on input '{self.input}'{place}: expected {self.expected}, "
            f"got {self.got}{count}"
        )


@dataclass(frozen=True)
class LayerComparison:
    """One layer, over all inputs.

    Args:
        layer: its name; a second call within one run is "name#2".
        exact: whether its output follows from whole numbers, so that it must be the same bit for bit. Other layers sum
            real numbers, in an order that each runtime chooses.
        codes, differing: codes of its input that were compared, and how many of them differ.
        output_difference: the largest difference of an output; None where the other model does not show it.
    """

    layer: str
    exact: bool
    codes: int
    differing: int
    output_difference: float | None


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Args:
        identical: all codes, and all outputs of layers that compute with whole numbers, are the same on all inputs;
            outputs of float layers, and of the model, agree to rounding.
        first_difference: the first tensor that differs, in the order of the inputs and of execution; None where none
            does.
        explanation: where codes differ: whether float layers before explain it. Empty otherwise.
        explained: whether rounding in float layers explains the first difference on each input that has one: every code
            that differs is one that the quantizer takes within rounding of its input. True where there is none.
        layers: in the order of execution.
        outputs_max_difference: of what the model returns.
        predictions_equal: whether the largest output of each row is at the same place; None where outputs are no rows.
        float_tensors: what stayed float, with its bytes, the largest first.
        bytes_before, bytes_after: of the float model's tensors, and of the exported file or, for a compiled model, of
            the tensors that a file would have.
        other: what was compared.
        inputs: on what.
    """

    identical: bool
    first_difference: Difference | None
    explanation: str
    explained: bool
    layers: tuple[LayerComparison, ...]
    outputs_max_difference: float
    predictions_equal: bool | None
    float_tensors: tuple[tuple[str, int], ...]
    bytes_before: int
    bytes_after: int
    other: str
    inputs: str

    def require_identical(self) -> None:
        """Raises: ArtefactError with the first difference and what explains it, if there is one."""
        if not self.identical:
            why = f" ({self.explanation})" if self.explanation else ""
            raise ArtefactError(
                f"{self.other} does not compute what the trained model computes. The first difference: "
                f"{self.first_difference}{why}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def render(self) -> Table:
        """The report as a table."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=self._caption(), caption_justify="left")
        table.title = f"{self.other} against the trained model"
        table.add_column("layer", overflow="fold")
        table.add_column("arithmetic")
        for header in ("codes", "differing", "output differs by"):
            table.add_column(header, justify="right", no_wrap=True)
        for layer in self.layers:
            by = "not shown" if layer.output_difference is None else f"{layer.output_difference:.3g}"
            codes = (f"{layer.codes:,}", f"{layer.differing:,}") if layer.codes else ("", "")
            table.add_row(layer.layer, "whole numbers" if layer.exact else "float", *codes, by)
        return table

    def _caption(self) -> str:
        lines = ["identical" if self.identical else f"DIFFERENT: {self.first_difference}"]
        lines += [self.explanation] if self.explanation else []
        same = {True: ", the same predictions", False: ", other predictions", None: ""}[self.predictions_equal]
        lines.append(f"what the model returns differs by at most {self.outputs_max_difference:.3g}{same}")
        lines.append(f"inputs: {self.inputs}")
        ratio = self.bytes_before / max(1, self.bytes_after)
        lines.append(f"{self.bytes_before:,} bytes before, {self.bytes_after:,} after: {ratio:.1f} times less")
        listed = [f"{name} ({size:,} bytes)" for name, size in self.float_tensors[:LISTED]]
        more = len(self.float_tensors) - len(listed)
        lines.append(f"still float: {', '.join(listed) or 'nothing'}{f' and {more} more' if more else ''}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return as_text(self.render())
