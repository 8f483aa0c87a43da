"""Images and labels from Parquet files in the layout of Hugging Face `datasets`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowbit._errors import DataError
from lowbit.data._core import Split
from lowbit.data._decode import decode_images

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")


@dataclass(frozen=True)
class Columns:
    """The names a column may go by, the first that is there counts."""

    image: tuple[str, ...] = ("img", "image")
    label: tuple[str, ...] = ("label", "fine_label")


def find_parquet(folder: Path, split: str) -> list[Path]:
    """The Parquet files of one split: `train.parquet` or the shards `train-00000-of-00002.parquet`, in `folder` or one
    of its subfolders; empty when there are none.

    Raises: DataError when a shard is missing, or several subfolders have the split.
    """
    for pattern in (f"{split}.parquet", f"{split}-*.parquet", f"*/{split}.parquet", f"*/{split}-*.parquet"):
        files = sorted(folder.glob(pattern))
        if files:
            break
    else:
        return []
    if len({file.parent for file in files}) > 1:
        places = ", ".join(sorted({file.parent.name for file in files}))
        raise DataError(f"'{folder}' has {split} files in several subfolders ({places}); name one with --data-path")
    match = _SHARD.search(files[0].name)
    if match and len(files) != int(match[2]):
        raise DataError(
            f"'{files[0].parent}' has {len(files)} of the {int(match[2])} files {split}-?????-of-{match[2]}.parquet; "
            "download the missing ones too"
        )
    return files


def read_parquet(files: Sequence[Path], columns: Columns) -> tuple[Split, bytes]:
    """One split from its Parquet files, and the content of its first image file.

    Raises: DataError when a file is not Parquet or truncated, lacks a column, or holds a damaged image.
    """
    encoded: list[bytes] = []
    labels: list[int] = []
    for file in files:
        images_of_file, labels_of_file = _read_file(file, columns)
        encoded += images_of_file
        labels += labels_of_file
    where = f"'{files[0]}'" if len(files) == 1 else f"'{files[0].parent}', {files[0].name} and following"
    images = decode_images(encoded, where)
    return Split(images, torch.tensor(labels, dtype=torch.int64)), encoded[0]


def _read_file(file: Path, columns: Columns) -> tuple[list[bytes], list[int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
        known = parquet.schema_arrow.names
        image, label = _pick(file, known, columns.image, "image"), _pick(file, known, columns.label, "label")
        table = parquet.read(columns=[image, label])
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"'{file}' cannot be read as Parquet ({str(error).splitlines()[0]}); expected a complete Parquet file: it "
            "may be truncated, download it again"
        ) from error
    return _bytes_of(file, image, table.column(image)), _integers_of(file, label, table.column(label))


def _pick(file: Path, known: Sequence[str], wanted: Sequence[str], kind: str) -> str:
    for name in wanted:
        if name in known:
            return name
    expected = " or ".join(repr(name) for name in wanted)
    raise DataError(f"'{file}' has no {kind} column: it has {', '.join(known)}; expected {expected}")


def _bytes_of(file: Path, name: str, column: Any) -> list[bytes]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise DataError(f"'{file}', column '{name}' has type {column.type}; expected image files (bytes, path)")
    if column.null_count:
        raise DataError(
            f"'{file}', column '{name}' has {column.null_count} rows without an image; expected one per row"
        )
    found: list[bytes] = column.to_pylist()
    return found


def _integers_of(file: Path, name: str, column: Any) -> list[int]:
    import pyarrow as pa

    if not pa.types.is_integer(column.type) or column.null_count:
        given = f"type {column.type}, {column.null_count} missing"
        raise DataError(f"'{file}', column '{name}' has {given}; expected a class index 0, 1, ... in every row")
    found: list[int] = column.to_pylist()
    return found
