from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lowbit._errors import DataError
from lowbit.data import load_data

Encode = Callable[..., bytes]
Write = Callable[..., None]


def flat(pictures: np.ndarray) -> np.ndarray:
    """As the originals store them: all red, all green, all blue."""
    return pictures.transpose(0, 3, 1, 2).reshape(len(pictures), -1)


def check(path: Path, pictures: np.ndarray, source: str = "cifar10") -> None:
    """Ten images to train on, label k for image k; the last two to test on, labels 3 and 1."""
    data = load_data(source, path)
    expected = torch.from_numpy(pictures).movedim(3, 1)
    assert torch.equal(data.train.images, expected[:10])
    assert torch.equal(data.test.images, expected[10:])
    assert data.train.labels.tolist() == list(range(10))
    assert data.test.labels.tolist() == [3, 1]
    assert (data.flip, data.crop_padding, data.num_classes) == (True, 4, 100 if source == "cifar100" else 10)


@pytest.mark.parametrize("inside", ["", "plain_text"])
@pytest.mark.parametrize("shards", [0, 1, 3])
@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "label")])
def test_parquet(
    tmp_path: Path,
    pictures: np.ndarray,
    encode: Encode,
    write_parquet: Write,
    inside: str,
    shards: int,
    image: str,
    label: str,
) -> None:
    content = [encode(picture) for picture in pictures]
    folder = tmp_path / inside
    if shards:
        edges = [10 * k // shards for k in range(shards + 1)]
        for k in range(shards):
            rows = range(edges[k], edges[k + 1])
            name = f"train-{k:05d}-of-{shards:05d}.parquet"
            write_parquet(folder / name, [content[row] for row in rows], list(rows), image, label)
        write_parquet(folder / "test-00000-of-00001.parquet", content[10:], [3, 1], image, label)
    else:
        write_parquet(folder / "train.parquet", content[:10], list(range(10)), image, label)
        write_parquet(folder / "test.parquet", content[10:], [3, 1], image, label)
    check(tmp_path, pictures)
    assert load_data("cifar10", tmp_path).name == "CIFAR-10"


@pytest.mark.parametrize("label", ["fine_label", "label"])
def test_cifar100_parquet(
    tmp_path: Path, pictures: np.ndarray, encode: Encode, write_parquet: Write, label: str
) -> None:
    content = [encode(picture) for picture in pictures]
    write_parquet(tmp_path / "train.parquet", content[:10], list(range(10)), "img", label)
    write_parquet(tmp_path / "test.parquet", content[10:], [3, 1], "img", label)
    check(tmp_path, pictures, "cifar100")


def test_a_jpeg_copy_is_called_one(tmp_path: Path, pictures: np.ndarray, encode: Encode, write_parquet: Write) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [encode(picture, "JPEG") for picture in pictures[:2]], [0, 9])
    assert load_data("cifar10", tmp_path).name == "CIFAR-10 (JPEG)"


def binary(path: Path, pictures: np.ndarray, labels: list[list[int]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(np.concatenate((np.array(labels, np.uint8), flat(pictures)), 1).tobytes())


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_binary(tmp_path: Path, pictures: np.ndarray, inside: str) -> None:
    for k in range(5):
        binary(tmp_path / inside / f"data_batch_{k + 1}.bin", pictures[2 * k : 2 * k + 2], [[2 * k], [2 * k + 1]])
    binary(tmp_path / inside / "test_batch.bin", pictures[10:], [[3], [1]])
    check(tmp_path, pictures)


@pytest.mark.parametrize("inside", ["", "cifar-100-binary"])
def test_cifar100_binary(tmp_path: Path, pictures: np.ndarray, inside: str) -> None:
    binary(tmp_path / inside / "train.bin", pictures[:10], [[19, k] for k in range(10)])
    binary(tmp_path / inside / "test.bin", pictures[10:], [[7, 3], [7, 1]])
    check(tmp_path, pictures, "cifar100")


def pickled(path: Path, pictures: np.ndarray, labels: list[int], key: bytes = b"labels") -> None:
    path.parent.mkdir(exist_ok=True)
    content = {b"data": flat(pictures), key: labels, b"batch_label": b"a batch", b"filenames": [b"a.png"] * len(labels)}
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_pickles(folder: Path, pictures: np.ndarray) -> None:
    for k in range(5):
        pickled(folder / f"data_batch_{k + 1}", pictures[2 * k : 2 * k + 2], [2 * k, 2 * k + 1])
    pickled(folder / "test_batch", pictures[10:], [3, 1])


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_pickles(tmp_path: Path, pictures: np.ndarray, inside: str) -> None:
    write_pickles(tmp_path / inside, pictures)
    check(tmp_path, pictures)


@pytest.mark.parametrize("inside", ["", "cifar-100-python"])
def test_cifar100_pickles(tmp_path: Path, pictures: np.ndarray, inside: str) -> None:
    pickled(tmp_path / inside / "train", pictures[:10], list(range(10)), b"fine_labels")
    pickled(tmp_path / inside / "test", pictures[10:], [3, 1], b"fine_labels")
    check(tmp_path, pictures, "cifar100")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"data": None, b"labels": [0, 1]}, "images as NoneType; expected uint8 .2, 3072."),
        ({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, r"float64 \[2, 3072\]; expected uint8"),
        ({b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 1]}, r"uint8 \[3, 3072\]; expected uint8 \[2, 3072\]"),
        (
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0.5, 1.0]},
            "labels that are not whole numbers; expected a list of class indices",
        ),
        (
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [[0], [1, 2]]},
            "labels that are not whole numbers; expected a list of class indices",
        ),
        (
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": 3},
            "labels that are not whole numbers; expected a list of class indices",
        ),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, 1]}, "'data', b'fine_labels'; expected a dict"),
        ([1, 2], "holds list; expected a dict"),
    ],
)
def test_pickles_of_other_content_are_named(
    tmp_path: Path, pictures: np.ndarray, content: object, message: str
) -> None:
    write_pickles(tmp_path, pictures)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=f"data_batch_2' .*{message}"):
        load_data("cifar10", tmp_path)


def test_truncated_files_are_named(tmp_path: Path, pictures: np.ndarray) -> None:
    write_pickles(tmp_path, pictures)
    file = tmp_path / "data_batch_4"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"data_batch_4' cannot be read .*truncated.* download it again"):
        load_data("cifar10", tmp_path)
    binary(tmp_path / "data_batch_1.bin", pictures, [[0]] * 12)
    (tmp_path / "data_batch_1.bin").write_bytes((tmp_path / "data_batch_1.bin").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_1.bin' holds 36,875 bytes; expected a multiple of 3,073"):
        load_data("cifar10", tmp_path)


def test_labels_out_of_range_are_named(tmp_path: Path, pictures: np.ndarray) -> None:
    write_pickles(tmp_path, pictures)
    pickled(tmp_path / "data_batch_5", pictures[:2], [0, 10])
    with pytest.raises(DataError, match=r"CIFAR-10: image 9 of the train split has label 10; expected 0..9"):
        load_data("cifar10", tmp_path)


def test_missing_files_are_named(tmp_path: Path, pictures: np.ndarray, encode: Encode, write_parquet: Write) -> None:
    write_pickles(tmp_path, pictures)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"has no data_batch_3.bin or data_batch_3; the folder has data_batch_1"):
        load_data("cifar10", tmp_path)
    with pytest.raises(DataError, match=r"cifar100.*has no train.bin or train"):
        load_data("cifar100", tmp_path)
    write_parquet(tmp_path / "train.parquet", [encode(pictures[0])], [0])
    with pytest.raises(DataError, match=r"has no test.parquet; .*--data-path"):
        load_data("cifar10", tmp_path)


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match="unpack the archive"):
        load_data("cifar10", tmp_path)


def test_missing_shards_and_two_configurations_are_named(
    tmp_path: Path, pictures: np.ndarray, encode: Encode, write_parquet: Write
) -> None:
    write_parquet(tmp_path / "a" / "train-00001-of-00002.parquet", [encode(pictures[0])], [0])
    write_parquet(tmp_path / "a" / "test-00000-of-00001.parquet", [encode(pictures[0])], [0])
    with pytest.raises(DataError, match=r"has 1 of the 2 files train-\?\?\?\?\?-of-00002.parquet"):
        load_data("cifar10", tmp_path)
    write_parquet(tmp_path / "b" / "train-00000-of-00001.parquet", [encode(pictures[0])], [0])
    with pytest.raises(DataError, match=r"several subfolders \(a, b\)"):
        load_data("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "image", "label", "message"),
    [
        (
            2,
            [0, 1],
            "photo",
            "label",
            r"train.parquet' has no image column: it has photo, label; expected 'img' or 'image'",
        ),
        (2, [0, 1], "img", "class", "train.parquet' has no label column: it has img, class; expected 'label'"),
        (2, [0.0, 1.0], "img", "label", "train.parquet', column 'label' has type double"),
        (2, [0, None], "img", "label", "column 'label' has type int64, 1 missing"),
        (None, [0, 1], "img", "label", "column 'img' has 1 rows without an image"),
        (0, [], "img", "label", "holds no images|has type null"),
        (2, [0, 1], "label", "img", "no image column|column 'img' has type int64"),
    ],
)
def test_columns_that_do_not_fit_are_named(
    tmp_path: Path,
    pictures: np.ndarray,
    encode: Encode,
    write_parquet: Write,
    images: int | None,
    labels: list[object],
    image: str,
    label: str,
    message: str,
) -> None:
    content = [encode(pictures[0]), None] if images is None else [encode(pictures[0])] * images
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", content, labels, image, label)
    with pytest.raises(DataError, match=message):
        load_data("cifar10", tmp_path)


def test_damaged_parquet_and_images_are_named(
    tmp_path: Path, pictures: np.ndarray, encode: Encode, write_parquet: Write
) -> None:
    content = [encode(picture, "JPEG") for picture in pictures]
    write_parquet(tmp_path / "test.parquet", content[10:], [3, 1])
    write_parquet(tmp_path / "train.parquet", content[:10], list(range(10)))
    whole = (tmp_path / "train.parquet").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"<html></html>"):
        (tmp_path / "train.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match=r"train.parquet' cannot be read as Parquet .*download it again"):
            load_data("cifar10", tmp_path)
    write_parquet(tmp_path / "train.parquet", [*content[:9], content[9][:300]], list(range(10)))
    with pytest.raises(DataError, match=r"image 9 of '.*train.parquet' cannot be decoded"):
        load_data("cifar10", tmp_path)


def test_images_of_another_size_are_named(tmp_path: Path, encode: Encode, write_parquet: Write) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [encode(np.zeros((28, 28, 3), np.uint8))], [0])
    with pytest.raises(DataError, match="are 3 x 28 x 28; expected 3 x 32 x 32"):
        load_data("cifar10", tmp_path)


def test_the_class_names() -> None:
    from lowbit.data.cifar import _CIFAR10, _CIFAR100

    assert _CIFAR10.classes[3] == "cat"
    assert list(_CIFAR100.classes) == sorted(set(_CIFAR100.classes))
    assert len(_CIFAR100.classes) == 100


def test_the_real_files(real_data: Path) -> None:
    data = load_data("cifar10", real_data / "cifar10-jpeg")
    assert data.name == "CIFAR-10 (JPEG)"
    assert (len(data.train), len(data.test), data.image_size) == (50_000, 10_000, (32, 32))
    assert torch.bincount(data.train.labels).tolist() == [5000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    # The means of the original are .4914 .4822 .4465.
    means = data.train.images.double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-4)
