"""CIFAR-10 and CIFAR-100 in any of the forms they are passed around in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowbit._errors import DataError
from lowbit.data._core import DATA, ImageData, Split
from lowbit.data._files import find, listing, require_folder
from lowbit.data._parquet import Columns, find_parquet, read_parquet
from lowbit.data._unpickle import load_plain

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Variant:
    """How one of the two data sets is laid out."""

    source: str
    name: str
    classes: tuple[str, ...]
    label_columns: tuple[str, ...]
    label_key: bytes  # in the pickles
    label_bytes: int  # before each image in the binary version; the last of them is the label
    train_files: tuple[str, ...]
    test_file: str
    folders: tuple[str, ...]

    @property
    def contents(self) -> str:
        binary = f"{self.train_files[0]}.bin" + (", ..." if len(self.train_files) > 1 else "")
        return (
            f"{self.name} as train.parquet and test.parquet (or shards train-00000-of-00001.parquet), as the binary "
            f"version ({binary}, {self.test_file}.bin) or as the python version ({self.train_files[0]}, ...)"
        )


_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_CIFAR10 = _Variant(
    source="cifar10",
    name="CIFAR-10",
    classes=_CIFAR10_CLASSES,
    label_columns=("label",),
    label_key=b"labels",
    label_bytes=1,
    train_files=tuple(f"data_batch_{k}" for k in range(1, 6)),
    test_file="test_batch",
    folders=("cifar-10-batches-bin", "cifar-10-batches-py"),
)
_CIFAR100 = _Variant(
    source="cifar100",
    name="CIFAR-100",
    classes=tuple(_CIFAR100_NAMES.split()),
    label_columns=("fine_label", "label"),
    label_key=b"fine_labels",
    label_bytes=2,
    train_files=("train",),
    test_file="test",
    folders=("cifar-100-binary", "cifar-100-python"),
)


@DATA.register("cifar10")
def load_cifar10(path: Path | None) -> ImageData:
    """50,000 + 10,000 colour photographs of 32 × 32 pixels in 10 classes, from Parquet, binary or python files.

    Args:
        path: a folder with `train.parquet` and `test.parquet` (columns `img` or `image`, and `label`) or their numbered
            shards, there or in a subfolder; or with the original `data_batch_1.bin` ... or `data_batch_1` ....

    Raises: DataError when a file is missing, truncated or not what it should be.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. Where the Parquet files hold
    JPEG images the name is "CIFAR-10 (JPEG)": accuracies on such a copy are not those on the original.
    """
    return _load(_CIFAR10, path)


@DATA.register("cifar100")
def load_cifar100(path: Path | None) -> ImageData:
    """50,000 + 10,000 colour photographs of 32 × 32 pixels in 100 classes, from Parquet, binary or python files.

    Args:
        path: a folder with `train.parquet` and `test.parquet` (columns `img` or `image`, and `fine_label` or `label`)
            or their numbered shards, there or in a subfolder; or with the original `train.bin` and `test.bin`, or
            `train` and `test`.

    Raises: DataError when a file is missing, truncated or not what it should be.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. The labels are the fine ones.
    Where the Parquet files hold JPEG images the name is "CIFAR-100 (JPEG)".
    """
    return _load(_CIFAR100, path)


def _load(variant: _Variant, path: Path | None) -> ImageData:
    folder = require_folder(path, variant.source, variant.contents)
    name = variant.name
    train_parquet, test_parquet = find_parquet(folder, "train"), find_parquet(folder, "test")
    if train_parquet or test_parquet:
        if not (train_parquet and test_parquet):
            raise _missing(variant, folder, "test.parquet" if train_parquet else "train.parquet")
        columns = Columns(label=variant.label_columns)
        train, first = read_parquet(train_parquet, columns)
        test, _ = read_parquet(test_parquet, columns)
        name += " (JPEG)" if first.startswith(b"\xff\xd8") else ""
    else:
        train = _read_original(variant, folder, variant.train_files)
        test = _read_original(variant, folder, (variant.test_file,))
    if tuple(train.images.shape[1:]) != (3, 32, 32):
        given = " x ".join(str(length) for length in train.images.shape[1:])
        raise DataError(f"data source '{variant.source}': the images in '{folder}' are {given}; expected 3 x 32 x 32")
    return ImageData(name=name, train=train, test=test, classes=variant.classes, flip=True, crop_padding=4)


def _missing(variant: _Variant, folder: Path, name: str) -> DataError:
    packed = any(child.name.endswith((".tar.gz", ".tgz")) for child in folder.iterdir())
    advice = "unpack the archive in it" if packed else f"download {variant.name} and name its folder with --data-path"
    return DataError(
        f"data source '{variant.source}': '{folder}' has no {name}; {listing(folder)}; expected {variant.contents}: "
        f"{advice}"
    )


def _read_original(variant: _Variant, folder: Path, stems: Sequence[str]) -> Split:
    images, labels = [], []
    for stem in stems:
        file = find(folder, variant.folders, (f"{stem}.bin", stem))
        if file is None:
            raise _missing(variant, folder, f"{stem}.bin or {stem}")
        pixels, classes = _read_binary(variant, file) if file.suffix == ".bin" else _read_pickle(variant, file)
        images.append(pixels.reshape(-1, 3, 32, 32))
        labels.append(classes)
    return Split(torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels)))


def _read_binary(variant: _Variant, file: Path) -> tuple[Any, Any]:
    content = np.fromfile(file, np.uint8)
    record = variant.label_bytes + _PIXELS
    if len(content) == 0 or len(content) % record:
        raise DataError(
            f"'{file}' holds {len(content):,} bytes; expected a multiple of {record:,} (label and image): it is "
            "truncated or damaged, download it again"
        )
    records = content.reshape(-1, record)
    return records[:, variant.label_bytes :], records[:, variant.label_bytes - 1].astype(np.int64)


def _read_pickle(variant: _Variant, file: Path) -> tuple[Any, Any]:
    batch = load_plain(file)
    key = variant.label_key
    if not isinstance(batch, dict) or b"data" not in batch or key not in batch:
        given = ", ".join(map(repr, batch)) if isinstance(batch, dict) else type(batch).__name__
        raise DataError(f"'{file}' holds {given}; expected a dict with {b'data'!r} and {key!r}: is it {variant.name}?")
    pixels, labels = batch[b"data"], _class_indices(file, batch[key])
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
        given = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"'{file}' holds images as {given}; expected uint8 [{len(labels)}, {_PIXELS}], one per label")
    return pixels, labels


def _class_indices(file: Path, given: object) -> Any:
    values = list(given) if isinstance(given, list | np.ndarray) else [None]
    if not all(isinstance(value, int | np.integer) for value in values):
        raise DataError(f"'{file}' holds labels that are not whole numbers; expected a list of class indices 0, 1, ...")
    return np.array(values, dtype=np.int64)
