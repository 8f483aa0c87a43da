"""What a file stores of a model and how: every tensor, its bits and bytes, and which of them stayed float."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich import box
from rich.table import Table
from torch import Tensor, nn

from lowbit.deploy.files.contents import contents, plain_tensors
from lowbit.layers import plain_name
from lowbit.layers.text import as_text
from lowbit.quantizers import Grid


@dataclass(frozen=True)
class StoredTensor:
    """One tensor.

    Args:
        name: in the model; a weight's scale is called after the weight.
        stored: "codes": a low-bit weight, packed; "scale": of a weight or of a layer's input; "float": as it is;
            "other": whole numbers and truth values, as they are.
        shape: of the tensor in the model.
        bits: that one element takes.
        bytes: in the file.
        float_bytes: in the float model, which has no scales.
    """

    name: str
    stored: Literal["codes", "scale", "float", "other"]
    shape: tuple[int, ...]
    bits: int
    bytes: int
    float_bytes: int


@dataclass(frozen=True)
class Sizes:
    """Every tensor that a file stores of a model."""

    tensors: tuple[StoredTensor, ...]

    @property
    def before(self) -> int:
        """Bytes of the float model's tensors."""
        return sum(tensor.float_bytes for tensor in self.tensors)

    @property
    def after(self) -> int:
        """Bytes of the file's tensors; its header comes on top."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def float_tensors(self) -> tuple[StoredTensor, ...]:
        """Those that stayed float, the largest first."""
        kept = [tensor for tensor in self.tensors if tensor.stored == "float"]
        return tuple(sorted(kept, key=lambda tensor: -tensor.bytes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"before": self.before, "after": self.after, "tensors": [asdict(tensor) for tensor in self.tensors]}

    def render(self) -> Table:
        """The tensors as a table."""
        caption = (
            f"{self.before:,} bytes before, {self.after:,} after: {self.before / max(1, self.after):.1f} times less"
        )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
        table.add_column("tensor", overflow="fold")
        table.add_column("stored as")
        for header in ("shape", "bits", "bytes", "as float"):
            table.add_column(header, justify="right", no_wrap=True)
        for tensor in self.tensors:
            shape = "×".join(map(str, tensor.shape)) or "1"
            row = (tensor.name, tensor.stored, shape, f"{tensor.bits}", f"{tensor.bytes:,}", f"{tensor.float_bytes:,}")
            table.add_row(*row)
        return table

    def __str__(self) -> str:
        return as_text(self.render())


def sizes(model: nn.Module) -> Sizes:
    """How `lowbit.deploy.save` stores a converted model; the model is left as it was. Raises: ArtefactError."""
    found = contents(model)
    plain = {id(tensor) for _, tensor in plain_tensors(model, found.modules)}
    layers = {plain_name(name): module for name, module in model.named_modules()}
    rows = []
    for name, tensor in found.tensors.items():
        layer, _, part = name.rpartition(".weight.")
        module = found.modules.get(layer) if part in ("codes", "scale") else None
        if part == "codes" and module is not None and module.weight is not None:
            weight = layers[layer].weight
            assert isinstance(weight, Tensor)
            # A weight that a float layer shares is stored there too, and two low-bit layers may share one.
            once = 0 if id(weight) in plain else weight.nbytes
            plain.add(id(weight))
            bits = Grid(*module.weight.grid).bits
            rows.append(StoredTensor(f"{layer}.weight", "codes", tuple(weight.shape), bits, tensor.nbytes, once))
        elif module is not None or "_quantizer.quantizer." in name:
            rows.append(StoredTensor(name, "scale", tuple(tensor.shape), 8 * tensor.itemsize, tensor.nbytes, 0))
        else:
            kind: Literal["float", "other"] = "float" if tensor.is_floating_point() else "other"
            size = tensor.nbytes
            rows.append(StoredTensor(name, kind, tuple(tensor.shape), 8 * tensor.itemsize, size, size))
    return Sizes(tuple(rows))
