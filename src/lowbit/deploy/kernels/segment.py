"""A stretch of a traced network that the kernels run in one call, before and after it became a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from lowbit._errors import ConfigError
from lowbit.deploy.kernels.tracing import Kind


@dataclass
class Segment:
    """Consecutive operations that the kernels run in one call.

    Args:
        nodes: the operations, in order, with their kinds.
        inputs: nodes outside whose values it reads.
        outputs: its nodes whose values are read outside.
    """

    nodes: list[fx.Node]
    kinds: dict[fx.Node, Kind]
    inputs: list[fx.Node] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)


@dataclass
class Lowered:
    """A segment as a program.

    Args:
        program: the kernels' object.
        segment: what it computes.
        codes: layer's node → the value that holds its input's codes.
        rows: whether examples lie side by side in one image (2-D values), and of what width.
        expects: shapes of the inputs.
        shapes: of the outputs.
    """

    program: Any
    segment: Segment
    codes: dict[fx.Node, int]
    rows: int
    expects: Sequence[torch.Size]
    shapes: Sequence[torch.Size]

    def run(self, *inputs: Tensor, checked: bool = True) -> tuple[Tensor, ...]:
        """The values of the segment's outputs, for those of its inputs: float32, on the CPU, of the planned shapes.

        Not `checked`: one image where a batch was planned.
        """
        given = [t.contiguous().resolve_neg() for t in inputs]
        for tensor, shape in zip(given, self.expects, strict=True):
            same = tensor.shape == shape or (not checked and tensor.shape[1:] == shape[1:] and tensor.shape[0] == 1)
            if not same or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
                raise ConfigError(
                    f"within the compiled model a tensor has shape {tuple(tensor.shape)} and {tensor.dtype}, where "
                    f"it had {tuple(shape)} and float32 for the first input of this shape: shapes that depend on the "
                    "data cannot be compiled; run the model itself"
                )
        number = given[0].shape[0]
        outputs = tuple(_empty(number, *shape[1:]) for shape in self.shapes)
        self._runner()([t.data_ptr() for t in given], [t.data_ptr() for t in outputs], number)
        return outputs

    def _runner(self) -> Any:
        return self.program.run_rows if self.rows else self.program.run

    def direct(self) -> Callable[..., list[Tensor]]:
        """`run` without its checks, for inputs that are known to be as planned."""
        run, shapes, number = self._runner(), [tuple(shape) for shape in self.shapes], self.shapes[0][0]
        empty, dtype, device = torch.empty, torch.float32, torch.device("cpu")

        def call(*inputs: Tensor) -> list[Tensor]:
            given = [t if t.is_contiguous() and not t.is_neg() else t.contiguous().resolve_neg() for t in inputs]
            outputs = [empty(shape, dtype=dtype, device=device) for shape in shapes]
            run([t.data_ptr() for t in given], [t.data_ptr() for t in outputs], number)
            return outputs

        return call

    def read_codes(self, node: fx.Node, shape: tuple[int, ...]) -> Tensor:
        """The codes' whole numbers (int32) that the layer of `node` read in the last run, of one image."""
        if self.rows:
            found = torch.empty(shape[1], self.rows, dtype=torch.int32, device="cpu")
            self.program.read_codes(self.codes[node], found.numpy())
            return found[:, : shape[0]].T.contiguous()
        found = torch.empty(shape[1:], dtype=torch.int32, device="cpu")
        self.program.read_codes(self.codes[node], found.numpy())
        return found[None]


def _empty(*shape: int) -> Tensor:
    """What the kernels write to, whatever torch's default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")
