"""MNIST from its four IDX files, compressed or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lowbit._errors import DataError
from lowbit.data._core import DATA, ImageData, Split
from lowbit.data._files import find, listing, require_folder

_CONTENTS = (
    "the four MNIST files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte, each with or without .gz"
)
_SUBFOLDERS = ("raw", "MNIST/raw")


@DATA.register("mnist")
def load(path: Path | None) -> ImageData:
    """60,000 + 10,000 grey handwritten digits of 28 × 28 pixels, from a folder of IDX files.

    The files may be compressed, and may be spelled `train-images-idx3-ubyte` or `train-images.idx3-ubyte`. Data sets in
    the same format with ten classes load as well; their sizes are read from the files.

    Args:
        path: the folder, or one that holds it as `MNIST/raw`.

    Raises: DataError when a file is missing, truncated or not the IDX file its name says.

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits.
    """
    folder = require_folder(path, "mnist", _CONTENTS)
    return ImageData(
        name="MNIST",
        train=_split(folder, "train"),
        test=_split(folder, "t10k"),
        classes=tuple(str(digit) for digit in range(10)),
    )


def _split(folder: Path, prefix: str) -> Split:
    images_file, labels_file = _find(folder, f"{prefix}-images", 3), _find(folder, f"{prefix}-labels", 1)
    images, labels = read_idx(images_file, dimensions=3), read_idx(labels_file, dimensions=1)
    if len(images) != len(labels):
        raise DataError(
            f"'{images_file}' has {len(images)} images and '{labels_file}' {len(labels)} labels; expected one label "
            "per image: the two files are not of one data set"
        )
    return Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)))


def _find(folder: Path, stem: str, dimensions: int) -> Path:
    names = [f"{stem}{mark}idx{dimensions}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
    found = find(folder, _SUBFOLDERS, names)
    if found is None:
        raise DataError(
            f"data source 'mnist': '{folder}' has no file {names[0]} (or {names[1]}); {listing(folder)}; expected "
            f"{_CONTENTS}: download MNIST and name its folder with --data-path"
        )
    return found


def read_idx(file: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, decompressed if its name ends in `.gz`.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions; each dimension as a big-endian
    32-bit integer; the bytes, last dimension fastest.

    Raises: DataError when the content is not such an array, or longer or shorter than its header says.
    """
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"'{file}' cannot be decompressed ({error}); it is truncated or damaged: download it again"
        ) from error
    start = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise DataError(
            f"'{file}' starts with {content[:4].hex(' ') or 'nothing'}; expected {magic.hex(' ')}, an IDX file of "
            f"bytes with {dimensions} dimension(s): it is another kind of file"
        )
    shape = tuple(int.from_bytes(content[k : k + 4], "big") for k in range(4, start, 4))
    expected = start + math.prod(shape)
    if len(content) != expected or len(content) < start:
        sizes = " x ".join(str(length) for length in shape)
        raise DataError(
            f"'{file}' holds {len(content):,} bytes; expected {expected:,} for the {sizes} values its header "
            "announces: it is truncated or damaged, download it again"
        )
    # A copy: tensors may be written to, and the file's bytes may not.
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
