"""The figures of a run, as lines of JSON and as TensorBoard scalars."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.diagnostics.records import METRICS, STEPS, read_lines
from lowbit.training.run_folder import write_text
from lowbit.training.runtime import on_rank_zero

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BOARD_OF_STEPS = "steps"
"""Folder of the TensorBoard scalars against steps; those against epochs lie in the run folder itself."""


class RunLog:
    """Writes `metrics.jsonl` and `steps.jsonl`, and the same numbers as TensorBoard scalars.

    Every rank makes one and calls it; rank 0 writes. The figures `layers` of a record get the tags
    `layers/<figure>/<layer>`.
    """

    def __init__(self, fabric: Fabric, run: Path, history: list[dict[str, Any]]) -> None:
        """Start both files, the former with the lines of `history`.

        A resumed run thereby drops what came after its checkpoint: of `steps.jsonl` the lines of later epochs.
        """
        self._fabric = fabric
        self._epochs: _Series | None = None
        self._steps: _Series | None = None
        on_rank_zero(fabric, lambda: self._open(run, history))

    def _open(self, run: Path, history: list[dict[str, Any]]) -> None:
        steps = [line for line in read_lines(run / STEPS) if line["epoch"] <= len(history)]
        self._epochs = _Series(run / METRICS, run, "epoch", history)
        self._steps = _Series(run / STEPS, run / BOARD_OF_STEPS, "step", steps)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Add the record of one epoch. Raises, on every rank: CheckpointError when the disk refuses."""
        self._write(self._epochs, record)
        for series in (self._epochs, self._steps):  # not at every window: flushing waits for the disk
            if series is not None:
                series.flush()

    def steps(self, record: Mapping[str, Any]) -> None:
        """Add the record of a window of steps. Raises, on every rank: CheckpointError when the disk refuses."""
        self._write(self._steps, record)

    def _write(self, series: _Series | None, record: Mapping[str, Any]) -> None:
        on_rank_zero(self._fabric, lambda: None if series is None else series.write(record))

    def close(self) -> None:
        """Close the TensorBoard files."""
        for series in (self._epochs, self._steps):
            if series is not None:
                series.close()


class _Series:
    """One file of JSON lines, and the TensorBoard scalars of its numbers against `key`."""

    def __init__(self, path: Path, board: Path, key: str, kept: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from torch.utils.tensorboard import SummaryWriter

        self._path = path
        self._key = key
        write_text(path, "".join(_line(record) for record in kept))
        last = kept[-1][key] if kept else 0
        self._summary = Summary
        self._board: SummaryWriter = SummaryWriter(str(board), purge_step=last + 1)
        self._writer: Any = self._board.file_writer

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one line. Raises: CheckpointError when the disk refuses."""
        write_text(self._path, _line(record), mode="a")
        scalars = [(tag, value) for tag, value in _scalars(record) if tag not in ("epoch", "step")]
        # One event for all: `add_scalar` makes one for each, which takes ten times as long.
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars]
        self._writer.add_summary(self._summary(value=values), record[self._key])

    def flush(self) -> None:
        """Make sure that the TensorBoard file holds all that was added."""
        self._board.flush()

    def close(self) -> None:
        """Close the TensorBoard file."""
        self._board.close()


def _scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            for layer, figures in value.items():
                yield from ((f"{name}/{figure}/{layer}", v) for figure, v in figures.items() if v is not None)
        elif value is not None:
            yield name, value


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
