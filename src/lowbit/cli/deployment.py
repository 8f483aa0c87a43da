"""The commands that turn a run into a file, prove it, and use it."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit._errors import ConfigError
from lowbit.cli.deploy_options import BenchCommand, ExportCommand, PredictCommand, VerifyCommand
from lowbit.cli.parsing import console, parse, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from lowbit.deploy import Export, Report


def export_command(arguments: list[str]) -> None:
    """`lowbit export`."""
    command = parse(ExportCommand, "export", arguments)
    path = command.run / "model.lowbit" if command.to is None else command.to
    _check_export(command, path)
    from lowbit.cli.handover import from_run
    from lowbit.deploy.export import export

    given = from_run(command.run, command.checkpoint, command.data_path, command.images, seed=0)
    result = export(
        given.model,
        path,
        given.batches[0],
        form=command.form,
        opset=command.opset or 21,
        inputs=given.batches[1:],
        origin=given.origin,
    )
    assert result.report is not None
    report = _on_images(result.report, sum(map(len, given.batches)), given.origin.data)
    console(error=command.json).print(_headline(result), soft_wrap=True, markup=False)
    _print_report(report, command.json)
    if not report.identical:
        _note("codes differ by rounding alone, which float layers bring in: the file was kept (see above)")
    if command.json:
        print_json(
            {
                "path": str(path),
                "to": result.to,
                "form": result.form,
                "opset": result.opset,
                "bytes": result.size,
                "layers": result.layers,
                "report": report.to_dict(),
            }
        )


def verify_command(arguments: list[str]) -> int:
    """`lowbit verify`; the exit status is 1 if codes differ."""
    command = parse(VerifyCommand, "verify", arguments)
    if command.artefact.is_dir() and command.run.is_file():
        raise ConfigError(f"the file comes first, then the run: lowbit verify {command.run} {command.artefact}")
    from lowbit.cli.handover import from_run
    from lowbit.deploy.files.origin import read_origin
    from lowbit.deploy.proof.verify import verify

    origin = read_origin(command.artefact)
    checkpoint = command.checkpoint or ("last" if origin is not None and origin.checkpoint == "last" else "best")
    given = from_run(command.run, checkpoint, command.data_path, command.images, command.seed)
    report = verify(given.model, command.artefact, [*given.batches], seed=command.seed)
    report = _on_images(report, sum(map(len, given.batches)), given.origin.data)
    _print_report(report, command.json)
    if not report.identical:
        if origin is not None and origin.epoch != given.origin.epoch:
            _note(
                f"the file was made after epoch {origin.epoch}, the {given.origin.checkpoint} checkpoint of "
                f"'{command.run}' is that of epoch {given.origin.epoch}: other weights; export it again"
            )
        elif report.explained:
            _note("rounding in float layers explains every difference of codes: the file is right (see above)")
    if command.json:
        print_json(report.to_dict())
    return 0 if report.identical else 1


def predict_command(arguments: list[str]) -> None:
    """`lowbit predict`."""
    command = parse(PredictCommand, "predict", arguments)
    import torch

    from lowbit.cli.handover import check_count, predict
    from lowbit.deploy.measure.timing import torch_threads
    from lowbit.deploy.opened import open_artefact

    for option in ("batch_size", "threads", "limit"):
        check_count(f"--{option.replace('_', '-')}", getattr(command, option))
    threads = command.threads or torch.get_num_threads()
    with torch_threads(threads):
        opened = open_artefact(command.artefact, threads, command.model)
        result = predict(opened, command.data, command.data_path, command.batch_size, command.limit, threads)
    print(
        f"test accuracy {100 * result.accuracy:.2f} % on {result.images:,} images of '{result.data}'; "
        f"{result.images_per_second:,.0f} images/s in {result.runtime}, {result.batch_size} at a time, "
        f"{threads} {'thread' if threads == 1 else 'threads'}",
        file=sys.stderr if command.json else sys.stdout,
    )
    if command.json:
        print_json(asdict(result))


def bench_command(arguments: list[str]) -> None:
    """`lowbit bench`."""
    command = parse(BenchCommand, "bench", arguments)
    from lowbit.cli.handover import check_count
    from lowbit.deploy.measure.bench import bench

    for option in ("threads", "batch", "rounds"):
        check_count(f"--{option}", getattr(command, option))
    result = bench(command.artefact, command.threads, command.batch, command.rounds, command.model)
    _print(result.render(), command.json)
    for notice in result.notices:
        _note(notice)
    if command.json:
        print_json(result.to_dict())


def _check_export(command: ExportCommand, path: Path) -> None:
    """What can be seen before the run is opened. Raises: ConfigError."""
    kinds = {".lowbit": "packed", ".qonnx": "float"}
    if path.suffix not in (".onnx", *kinds):
        raise ConfigError(f"--to '{path}' ends in '{path.suffix}', expected .lowbit, .onnx or .qonnx")
    only = kinds.get(path.suffix)
    if only is not None and command.form not in (None, only):
        raise ConfigError(f"--form {command.form} is for .onnx files: a {path.suffix} file has one form; leave it out")
    if command.opset is not None and path.suffix == ".lowbit":
        raise ConfigError(f"--opset {command.opset} is for .onnx and .qonnx files: leave it out for '{path}'")
    if command.opset not in (None, 21, 25):
        raise ConfigError(f"--opset is {command.opset}, expected 21 or 25")
    if path.is_dir():
        raise ConfigError(f"--to '{path}' is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise ConfigError(f"--to '{path}': there is no folder '{path.parent}'; create it first")
    if path.exists() and not command.overwrite:
        raise ConfigError(f"'{path}' exists: replace it with --overwrite, or choose another --to")


def _headline(result: Export) -> str:
    kinds: dict[str, list[str]] = {}
    for layer, how in result.layers.items():
        kinds.setdefault(how, []).append(layer)
    opset = f", opset {result.opset}" if result.opset else ""
    first = f"written: {result.path} ({result.form}{opset}, {result.size:,} bytes)"
    return "\n".join([first, *(f"  {how}: {', '.join(layers)}" for how, layers in kinds.items())])


def _on_images(report: Report, images: int, source: str) -> Report:
    """The report, which says what was compared."""
    return replace(report, inputs=f"{images} test images of '{source}';{report.inputs.partition(';')[2]}")


def _print_report(report: Report, json: bool) -> None:
    _print(report.render(), json)
    if not any(layer.codes for layer in report.layers):
        _note(
            "no layer here computes with whole numbers: all was compared within rounding, which on the largest of the "
            "inputs made to hurt is a large number"
        )


def _print(table: Table, json: bool) -> None:
    out = console(error=json)
    caption, table.caption = str(table.caption or ""), None  # which would be broken to the table's width
    out.print(table)
    out.print(caption, soft_wrap=True, markup=False)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
