from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lowbit._errors import DataError
from lowbit.data import load_data
from lowbit.data.mnist import read_idx

STEMS = {"train-images": 3, "train-labels": 1, "t10k-images": 3, "t10k-labels": 1}


def idx(values: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, values.ndim)) + b"".join(length.to_bytes(4, "big") for length in values.shape)
    return header + values.astype(np.uint8).tobytes()


def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(2)
    return {
        "train-images": generator.integers(0, 256, (7, 28, 28)),
        "train-labels": np.arange(7) % 10,
        "t10k-images": generator.integers(0, 256, (3, 28, 28)),
        "t10k-labels": np.array([9, 0, 4]),
    }


def write(folder: Path, mark: str = "-", packed: bool = True, **changed: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, values in arrays().items():
        content = changed.get(stem.replace("-", "_"), idx(values))
        name = f"{stem}{mark}idx{STEMS[stem]}-ubyte"
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inside", ["", "MNIST/raw"])
def test_every_spelling_of_the_files_loads(tmp_path: Path, mark: str, packed: bool, inside: str) -> None:
    write(tmp_path / inside, mark, packed)
    data = load_data("mnist", tmp_path)
    expected = arrays()
    assert torch.equal(data.train.images, torch.from_numpy(expected["train-images"].astype(np.uint8))[:, None])
    assert data.train.labels.tolist() == expected["train-labels"].tolist()
    assert data.test.labels.tolist() == [9, 0, 4]
    assert (data.test.images.shape, data.num_classes, data.flip) == ((3, 1, 28, 28), 10, False)


def damaged() -> dict[str, tuple[str, Callable[[dict[str, np.ndarray]], bytes], str]]:
    return {
        "truncated": (
            "train_images",
            lambda a: idx(a["train-images"])[:-5],
            "holds 5,499 bytes; expected 5,504 for the",
        ),
        "too long": ("t10k_labels", lambda a: idx(a["t10k-labels"]) + b"!", "holds 12 bytes; expected 11"),
        "other kind": (
            "train_labels",
            lambda a: idx(a["train-images"]),
            "starts with 00 00 08 03; expected 00 00 08 01",
        ),
        "not idx": ("train_images", lambda a: b"<html>", "starts with 3c 68 74 6d; expected 00 00 08 03"),
        "empty": ("train_images", lambda a: b"", "starts with nothing"),
        "header only": ("train_images", lambda a: b"\0\0\x08\x03\0\0", "holds 6 bytes"),
        "count": ("t10k_labels", lambda a: idx(np.arange(4)), "has 3 images and .* 4 labels"),
        "label": ("t10k_labels", lambda a: idx(np.array([1, 77, 2])), "image 1 of the test split has label 77"),
    }


@pytest.mark.parametrize("case", damaged())
def test_damaged_files_are_named(tmp_path: Path, case: str) -> None:
    stem, content, message = damaged()[case]
    write(tmp_path, **{stem: content(arrays())})
    with pytest.raises(DataError, match=message) as caught:
        load_data("mnist", tmp_path)
    assert case == "label" or f"{stem.replace('_', '-')}-idx" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_truncated_archive_is_named(tmp_path: Path, keep: int) -> None:
    write(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:keep] if keep else b"not gzip at all")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz' cannot be decompressed .* download it again"):
        load_data("mnist", tmp_path)


def test_damage_inside_an_archive_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz"):
        load_data("mnist", tmp_path)


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"no file t10k-labels-idx1-ubyte .*the folder has .*--data-path"):
        load_data("mnist", tmp_path)


def test_no_path_no_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no path was given: expected a folder with the four MNIST files"):
        load_data("mnist")
    with pytest.raises(DataError, match=r"'.*nowhere' does not exist"):
        load_data("mnist", tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"'.*file' is a file"):
        load_data("mnist", tmp_path / "file")


def test_the_array_may_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(idx(np.arange(5)))
    values = read_idx(tmp_path / "x", 1)
    values += 1
    assert values.tolist() == [1, 2, 3, 4, 5]


def test_the_real_files(real_data: Path) -> None:
    data = load_data("mnist", real_data / "mnist")
    assert (len(data.train), len(data.test), data.image_size) == (60_000, 10_000, (28, 28))
    assert data.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert torch.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert float(data.train.images.double().mean() / 255) == pytest.approx(0.1307, abs=5e-5)
