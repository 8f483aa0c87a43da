"""`export`: a trained model as a file that others run, and the proof that the file computes the same."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from lowbit._errors import ConfigError, ExportError, nearest
from lowbit.deploy.files.artefact import save
from lowbit.deploy.files.origin import KEY, Origin
from lowbit.deploy.proof.observe import Inputs, as_arguments, low_bit_modules
from lowbit.deploy.proof.report import Report
from lowbit.deploy.proof.verify import verify

FORMS = {"onnx": ("int8", "int4", "float"), "qonnx": ("float",), "lowbit": ("packed",)}
"""What a model can be exported to, and in which forms; the first is the default."""
OPSETS = (21, 25)
_NEEDED = {
    "onnx": ("onnx", "onnxscript", "onnxruntime", "torch.onnx.ops"),
    "qonnx": ("onnx", "onnxscript", "onnxruntime", "qonnx", "torch.onnx.ops"),
    "lowbit": (),
}


@dataclass(frozen=True)
class Export:
    """What `export` wrote.

    Args:
        path: the file.
        to, form: what it is.
        opset: of an ONNX file; None for others.
        size: in bytes.
        layers: for each low-bit layer, how the file computes it.
        report: the comparison with the trained model; None with check=False.
    """

    path: Path
    to: str
    form: str
    opset: int | None
    size: int
    layers: dict[str, str]
    report: Report | None

    def __str__(self) -> str:
        kinds: dict[str, list[str]] = {}
        for layer, how in self.layers.items():
            kinds.setdefault(how, []).append(layer)
        opset = f", opset {self.opset}" if self.opset else ""
        lines = [f"{self.path}: {self.to}, {self.form}{opset}, {self.size:,} bytes"]
        lines += [f"  {how}: {', '.join(layers)}" for how, layers in kinds.items()]
        return "\n".join([*lines, "not checked" if self.report is None else str(self.report)])


def export(
    model: nn.Module,
    path: str | Path,
    example_input: Inputs | None = None,
    to: str | None = None,
    form: str | None = None,
    opset: int = 21,
    inputs: Sequence[Inputs] = (),
    check: bool = True,
    origin: Origin | None = None,
) -> Export:
    """Write a trained model to a file, and run the file against the model, layer by layer, before it gets its name.

    | to | form | for | weights in the file |
    | --- | --- | --- | --- |
    | onnx | int8 | speed in ONNX Runtime: integer kernels, fused where that gives the same codes | int8 |
    | onnx | int4 | size: float kernels on whole numbers | 1 to 4 bits: int4 (1 and 2 bits: int2 from opset 25) |
    | onnx | float | any ONNX runtime: float kernels on whole numbers | float32 |
    | qonnx | float | FPGA tools: Quant and BipolarQuant nodes | float32 |
    | lowbit | packed | `lowbit.load`, and the compiled kernels | packed codes |

    The codes are those of the model in evaluation (docs/semantics.md), whatever the form. ONNX files take any batch
    size. The file is written under another name beside `path` and renamed once it has passed.

    Args:
        model: a converted model; it is not changed.
        path: of the file; ends in .onnx, .qonnx or .lowbit.
        example_input: a batch that the model takes, or a tuple of its positional arguments; needed for ONNX and QONNX.
        to: onnx, qonnx or lowbit; None: what the path's ending says.
        form: see the table; None: the first for each.
        opset: of the ONNX operations, 21 or 25.
        inputs: more batches to compare on, beside the example and those that `verify` makes to hurt.
        check: compare. Without it the file is written as it is.
        origin: the architecture and its inputs, for those who have the file alone; `lowbit export` gives it.

    Raises:
        ConfigError: an argument that does not fit; a package that is not installed.
        ExportError: a model that cannot be written as asked; a file that does not compute the same: it is removed.
        ArtefactError: what `save` raises, with to="lowbit".

    Example:
        >>> print(lowbit.export(model, "model.onnx", images[:8]))
    """
    path = Path(path)
    to, form = _check_target(path, to, form, opset)
    _check_model(model)
    arguments = _check_example(example_input, to)
    _check_installed(to)
    with _beside(path) as part:
        layers: dict[str, str] = {}
        if to == "lowbit":
            save(model, part, origin)
        else:
            layers = _write(model, part, arguments, to, form, opset, origin)
        report = _compare(model, path, part, arguments, inputs) if check else None
        size = part.stat().st_size
        os.replace(part, path)
    return Export(path, to, form, opset if to != "lowbit" else None, size, layers, report)


def _check_target(path: Path, to: str | None, form: str | None, opset: int) -> tuple[str, str]:
    """What to write, and in which form. Raises: ConfigError."""
    ending = path.suffix.removeprefix(".")
    if to is None:
        to = ending
        if to not in FORMS:
            raise ConfigError(
                f"export: '{path}' ends in '{path.suffix}': expected .onnx, .qonnx or .lowbit, or give to="
            )
    if to not in FORMS:
        raise ConfigError(f"export: to={to!r}: {nearest(str(to), FORMS)}choose from {', '.join(FORMS)}")
    if ending != to:
        raise ConfigError(f"export: to='{to}' writes a file that ends in .{to}; '{path}' was given")
    if form is None:
        form = FORMS[to][0]
    if form not in FORMS[to]:
        offered = ", ".join(FORMS[to])
        raise ConfigError(f"export: form={form!r}: {nearest(str(form), FORMS[to])}to='{to}' has the forms: {offered}")
    if isinstance(opset, bool) or opset not in OPSETS:
        raise ConfigError(f"export: opset={opset!r}: choose from {', '.join(map(str, OPSETS))}")
    if not path.parent.is_dir():
        raise ConfigError(f"export: there is no folder '{path.parent}': create it first")
    return to, form


def _check_model(model: nn.Module) -> None:
    """Raises: ConfigError when there is nothing low-bit."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"export takes a torch.nn.Module; {type(model).__name__} was given")
    if not low_bit_modules(model):
        raise ConfigError("export: this model has no low-bit layers: convert it with lowbit.convert and train it first")


def _check_example(example: Inputs | None, to: str) -> tuple[Tensor, ...]:
    """The positional arguments. Raises: ConfigError."""
    if example is None:
        if to == "lowbit":
            return ()
        raise ConfigError(f"export: to='{to}' needs an example_input: a batch that the model takes")
    arguments = as_arguments(example)
    for argument in arguments:
        if not isinstance(argument, Tensor) or not argument.ndim or not len(argument):
            raise ConfigError(
                "export: example_input is a batch that the model takes, a tensor, or a tuple of such; "
                f"{type(argument).__name__} was given"
            )
    sizes = {len(argument) for argument in arguments}
    if to != "lowbit" and len(sizes) > 1:
        raise ConfigError(
            "export: the first dimension of every input is the batch, of one size; given were "
            f"{', '.join(str(tuple(argument.shape)) for argument in arguments)}"
        )
    return arguments


def _check_installed(to: str) -> None:
    """Raises: ConfigError when something is missing."""
    missing = []
    for name in _NEEDED[to]:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append("torch 2.8 or newer" if name.startswith("torch.") else name)
    if missing:
        raise ConfigError(f"export: to='{to}' needs {', '.join(missing)}: pip install 'lowbit[onnx]'")


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name for the unfinished file, with the same ending; nothing is left under it in the end."""
    part = path.with_name(f".{path.stem}-{os.getpid()}.part{path.suffix}")
    try:
        yield part
    except OSError as error:
        raise ExportError(f"'{path}' cannot be written: {error}; what was there before is untouched") from None
    finally:
        part.unlink(missing_ok=True)


def _write(
    model: nn.Module,
    part: Path,
    arguments: tuple[Tensor, ...],
    to: str,
    form: str,
    opset: int,
    origin: Origin | None,
) -> dict[str, str]:
    from lowbit.deploy.onnx.dialects import DIALECTS
    from lowbit.deploy.onnx.file import trace, write

    file, layers = write(trace(model, arguments, opset), DIALECTS[to, form])
    if origin is not None:
        file.metadata_props.add(key=KEY, value=json.dumps(origin.to_json()))
    try:
        data = file.SerializeToString()
    except Exception as error:  # protobuf's own type: a message has room for 2 GB
        raise ExportError(f"the model is too large for one ONNX file: {error}") from None
    with part.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return layers


def _compare(
    model: nn.Module, path: Path, part: Path, arguments: tuple[Tensor, ...], inputs: Sequence[Inputs]
) -> Report:
    """Raises: ExportError when the file computes something else, and rounding in float layers does not explain it."""
    cases: list[Inputs] = [*([arguments] if arguments else []), *inputs]
    report = replace(verify(model, part, cases or None), other=path.name)
    if not report.identical and not report.explained:
        raise ExportError(
            f"'{path}' was not written: it would not compute what the trained model computes. The first difference: "
            f"{report.first_difference}{f' ({report.explanation})' if report.explanation else ''}"
        )
    return report
