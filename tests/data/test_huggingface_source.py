from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lowbit._errors import ConfigError, DataError, UnknownNameError
from lowbit.data import load_data

datasets = pytest.importorskip("datasets", reason="needs the extra 'hub'")

Encode = Callable[..., bytes]
Write = Callable[..., None]


def write_folder(root: Path, encode: Encode, pictures: np.ndarray, splits: tuple[str, ...] = ("train", "test")) -> None:
    """Two classes, cat and dog, and two images of each per split."""
    for k, split in enumerate(splits):
        for j, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                (folder / f"{i}.png").write_bytes(encode(pictures[4 * k + 2 * j + i]))


def test_a_folder_of_images(tmp_path: Path, encode: Encode, pictures: np.ndarray) -> None:
    write_folder(tmp_path / "pets", encode, pictures)
    data = load_data("imagefolder(flip=True, crop_padding=2)", tmp_path / "pets")
    assert (data.name, data.classes, data.flip, data.crop_padding) == ("pets", ("cat", "dog"), True, 2)
    expected = torch.from_numpy(pictures).movedim(3, 1)
    for split, first in ((data.train, 0), (data.test, 4)):
        assert split.labels.tolist() == [0, 0, 1, 1]
        assert torch.equal(split.images, expected[first : first + 4])


def test_image_size_brings_images_to_one_size(tmp_path: Path, encode: Encode, pictures: np.ndarray) -> None:
    write_folder(tmp_path, encode, pictures)
    (tmp_path / "train" / "dog" / "1.png").write_bytes(encode(pictures[0][:20]))
    with pytest.raises(DataError, match=r"dog/1.png' is 20 x 32 pixels .* image_size"):
        load_data("imagefolder", tmp_path)
    assert load_data("imagefolder(image_size=16)", tmp_path).image_size == (16, 16)
    assert load_data("imagefolder(image_size=(8, 12), channels=1)", tmp_path).train.images.shape == (4, 1, 8, 12)


def test_splits_of_other_names_and_holdout(tmp_path: Path, encode: Encode, pictures: np.ndarray) -> None:
    write_folder(tmp_path, encode, pictures, ("train", "val"))
    with pytest.raises(DataError, match=r"no split 'test': it has train, validation; .*imagefolder\(test=validation\)"):
        load_data("imagefolder", tmp_path)
    assert len(load_data("imagefolder(test=validation)", tmp_path).test) == 4
    data = load_data("imagefolder(holdout=0.25)", tmp_path)
    assert (len(data.train), len(data.test)) == (3, 1)
    with pytest.raises(DataError, match="no split 'training'"):
        load_data("imagefolder(train=training)", tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path, encode: Encode, pictures: np.ndarray) -> None:
    write_folder(tmp_path, encode, pictures)
    (tmp_path / "test" / "cat" / "0.png").write_bytes(encode(pictures[0])[:900])
    with pytest.raises(DataError, match=r"image '.*test/cat/0.png' cannot be decoded"):
        load_data("imagefolder", tmp_path)


def test_images_without_class_folders_have_no_labels(tmp_path: Path, encode: Encode, pictures: np.ndarray) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.png").write_bytes(encode(pictures[0]))
    with pytest.raises(DataError, match=r"row 0 of .*split 'train' has the label None; expected a class in every row"):
        load_data("imagefolder", tmp_path)


@pytest.fixture
def parquet_folder(tmp_path: Path, encode: Encode, pictures: np.ndarray) -> Path:
    """As the hub writes them: with the types of the columns in the file."""
    rows = {"img": [{"bytes": encode(p), "path": None} for p in pictures], "label": [k % 3 for k in range(12)]}
    rows["coarse"] = [k % 2 for k in range(12)]
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "label": datasets.ClassLabel(names=["a", "b", "c"]),
            "coarse": datasets.ClassLabel(names=["even", "odd"]),
        }
    )
    table = datasets.Dataset.from_dict(rows, features=features)
    for split, part in (("train", range(8)), ("test", range(8, 12))):
        table.select(part).to_parquet(tmp_path / "there" / f"{split}.parquet")
    return tmp_path / "there"


@pytest.mark.parametrize("source", ["parquet", "hub"])
def test_parquet_files_and_a_local_copy(parquet_folder: Path, pictures: np.ndarray, source: str) -> None:
    data = load_data(source, parquet_folder)
    assert (data.name, data.classes) == ("there", ("a", "b", "c"))
    assert torch.equal(data.train.images, torch.from_numpy(pictures[:8]).movedim(3, 1))
    assert data.test.labels.tolist() == [2, 0, 1, 2]
    coarse = load_data(f"{source}(label=coarse, image=img)", parquet_folder)
    assert (coarse.classes, coarse.test.labels.tolist()) == (("even", "odd"), [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [([0, 2, 1, 0], ("0", "1", "2"), [0, 2, 1, 0]), (["dog", "cat", "dog", "cat"], ("cat", "dog"), [1, 0, 1, 0])],
)
def test_labels_without_class_names(
    tmp_path: Path,
    encode: Encode,
    pictures: np.ndarray,
    write_parquet: Write,
    labels: list[object],
    classes: tuple[str, ...],
    expected: list[int],
) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [encode(p) for p in pictures[:4]], labels, "image")
    data = load_data("parquet", tmp_path)
    assert (data.classes, data.test.labels.tolist()) == (classes, expected)


@pytest.mark.parametrize(
    ("spec", "labels", "test_labels", "message"),
    [
        ("parquet(label=species)", [0, 1], [0, 1], "no column 'species': it has image, label; .*label=..."),
        ("parquet(image=photo)", [0, 1], [0, 1], "no column 'photo'"),
        ("parquet(image=label)", [0, 1], [0, 1], "column 'label' has type .*; expected images"),
        ("parquet", [0.5, 1.5], [0.5, 1.5], "expected class indices or class names"),
        (
            "parquet",
            ["cat", "dog"],
            ["cat", "cow"],
            "row 1 of .*split 'test' has the label 'cow'; expected one of cat, dog",
        ),
        ("parquet", [0, 1], [0, 5], "image 1 of the test split has label 5; expected 0..1"),
        ("parquet", [0, 1], [0, None], "row 1 of .* has the label None"),
        ("parquet", [0, -1], [0, 1], "label -1|1 classes"),
    ],
)
def test_columns_and_labels_that_do_not_fit_are_named(
    tmp_path: Path,
    encode: Encode,
    pictures: np.ndarray,
    write_parquet: Write,
    spec: str,
    labels: list[object],
    test_labels: list[object],
    message: str,
) -> None:
    for split, values in (("train", labels), ("test", test_labels)):
        write_parquet(tmp_path / f"{split}.parquet", [encode(p) for p in pictures[:2]], values, "image")
    with pytest.raises(DataError, match=message):
        load_data(spec, tmp_path)


def test_a_row_without_an_image_is_named(
    tmp_path: Path, encode: Encode, pictures: np.ndarray, write_parquet: Write
) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [encode(pictures[0]), None], [0, 1], "image")
    with pytest.raises(DataError, match=r"row 1 of .*split 'train' has no image"):
        load_data("parquet", tmp_path)


def test_a_damaged_parquet_file_is_named(parquet_folder: Path) -> None:
    (parquet_folder / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"'parquet' cannot read '.*there'"):
        load_data("parquet", parquet_folder)


def test_a_data_set_that_cannot_be_had_is_named() -> None:
    with pytest.raises(DataError, match=r"'hub' cannot read 'nobody-here/nothing': .*check that it exists"):
        load_data("hub(id='nobody-here/nothing')")


@pytest.mark.parametrize(
    ("spec", "path", "error", "message"),
    [
        ("hub", None, ConfigError, r"hub\(id='owner/name'\)"),
        ("hub(id='a/b')", Path("there"), ConfigError, "the id 'a/b' and the path 'there'"),
        ("hub(idd='a/b')", None, UnknownNameError, "no option 'idd': did you mean 'id'"),
        ("imagefolder(image_sise=3)", Path("there"), UnknownNameError, "did you mean 'image_size'"),
        ("imagefolder(holdout=1.5)", Path("there"), ConfigError, "holdout is 1.5"),
        ("imagefolder(holdout=big)", Path("there"), ConfigError, "holdout is 'big'"),
        ("imagefolder", None, DataError, "no path was given"),
        ("imagefolder", Path("nowhere"), DataError, "'nowhere' does not exist"),
    ],
)
def test_mistakes_in_options_are_named(spec: str, path: Path | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_data(spec, path)


@pytest.mark.parametrize("size", ["0", "-3", "big", "1.5", "(1, 2, 3)", "(4, 'x')"])
def test_image_sizes_that_are_none_are_refused(size: str, tmp_path: Path, encode: Encode, pictures: np.ndarray) -> None:
    write_folder(tmp_path, encode, pictures)
    with pytest.raises(ConfigError, match=r"image_size is .* expected pixels"):
        load_data(f"imagefolder(image_size={size})", tmp_path)


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'lowbit\[hub\]'"):
        load_data("imagefolder", tmp_path)
