"""Folders of images, Parquet files and data sets of the Hugging Face hub, read by the `datasets` library.

Needs the extra `hub`. All three sources take the same options; write them in the data spec, as in
`imagefolder(image_size=64, test=validation)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from lowbit._errors import ConfigError, DataError, UnknownNameError, nearest
from lowbit.data._core import DATA, ImageData, Split, split_validation
from lowbit.data._decode import Encoded, decode_images
from lowbit.data._files import require_folder


@dataclass(frozen=True)
class Options:
    """What the user may choose about a source that `datasets` reads.

    Attributes:
        image_size: pixels, a number or (height, width): every image is scaled until it covers this size, and the centre
            is kept. None where all images have one size already.
        train: name of the split to learn from.
        test: name of the split to report on.
        holdout: fraction of the training split to use as test split, for a source without one; 0 asks for `test`.
        image: name of the image column; by default the only one.
        label: name of the label column; by default `label`, or else the only column of class labels.
        channels: 3 for colour, 1 for grey.
        flip: mirror images while training.
        crop_padding: pixels of padding for random crops while training.
    """

    image_size: int | tuple[int, int] | None = None
    train: str = "train"
    test: str = "test"
    holdout: float = 0.0
    image: str | None = None
    label: str | None = None
    channels: int = 3
    flip: bool = False
    crop_padding: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.holdout, int | float) or not 0 <= self.holdout < 1:
            raise ConfigError(f"holdout is {self.holdout!r}; expected a fraction of the training split, in [0, 1)")

    @property
    def size(self) -> tuple[int, int] | None:
        """`image_size` as (height, width). Raises: ConfigError when it is not one or two positive whole numbers."""
        if self.image_size is None:
            return None
        pair = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        if (
            not isinstance(pair, tuple)
            or len(pair) != 2
            or not all(isinstance(side, int) and side > 0 for side in pair)
        ):
            raise ConfigError(f"image_size is {self.image_size!r}; expected pixels as a number or (height, width)")
        return pair[0], pair[1]


@DATA.register("imagefolder")
def load_imagefolder(path: Path | None, **options: Any) -> ImageData:
    """A folder of images, `train/CLASS/*.png` and `test/CLASS/*.png`; the folders' names are the classes.

    Args:
        path: the folder.
        options: see `Options`; `image_size` where the images differ in size.

    Raises: DataError when the folder is empty, or an image is damaged; ConfigError without the extra `hub`.
    """
    chosen = _options("imagefolder", options)
    folder = require_folder(path, "imagefolder", "train/CLASS/*.png and test/CLASS/*.png (or .jpg, ...)")
    return _load("imagefolder", folder.name, chosen, f"'{folder}'", "imagefolder", data_dir=str(folder))


@DATA.register("parquet")
def load_parquet(path: Path | None, **options: Any) -> ImageData:
    """A folder of Parquet files with a column of images and one of labels, `train*.parquet` and `test*.parquet`.

    Args:
        path: the folder.
        options: see `Options`.

    Raises: DataError when a file or column is missing or damaged; ConfigError without the extra `hub`.
    """
    chosen = _options("parquet", options)
    folder = require_folder(path, "parquet", "train*.parquet and test*.parquet")
    return _load("parquet", folder.name, chosen, f"'{folder}'", "parquet", data_dir=str(folder))


@DATA.register("hub")
def load_hub(path: Path | None = None, id: str | None = None, config: str | None = None, **options: Any) -> ImageData:
    """A data set of the Hugging Face hub by its id, `hub(id='owner/name')`, or a local copy of one.

    Args:
        path: a folder with a copy of a data set's repository, in any layout `datasets` reads; in place of `id`.
        id: owner and name of a data set on the hub; it is downloaded on first use.
        config: which of the data set's configurations, where it has several.
        options: see `Options`.

    Raises: DataError when the data set cannot be had or read; ConfigError without the extra `hub`, or when `path` and
    `id` are both or neither given.
    """
    chosen = _options("hub", options, also=("id", "config"))
    if path is None and id is None:
        raise ConfigError(
            "data source 'hub' needs a data set: write hub(id='owner/name'), or give a local copy's --data-path"
        )
    if path is not None and id is not None:
        raise ConfigError(f"data source 'hub' was given the id '{id}' and the path '{path}'; give one of them")
    if id is None:
        folder = require_folder(path, "hub", "a copy of a data set's repository")
        return _load("hub", folder.name, chosen, f"'{folder}'", str(folder), name=config)
    return _load("hub", id.rpartition("/")[2], chosen, f"'{id}'", id, name=config)


def _options(source: str, given: Mapping[str, Any], also: tuple[str, ...] = ()) -> Options:
    known = [*also, *(field.name for field in fields(Options))]
    for key in given:
        if key not in known:
            hint = nearest(key, known)
            raise UnknownNameError(f"data source '{source}' has no option '{key}': {hint}it takes: {', '.join(known)}")
    return Options(**given)


def _load(source: str, title: str, options: Options, where: str, *arguments: str, **keywords: str | None) -> ImageData:
    """Read splits with `datasets.load_dataset(*arguments, **keywords)`."""
    library = _import_datasets(source)
    size = options.size
    try:
        parts: Mapping[str, Any] = library.load_dataset(*arguments, **keywords)
    except Exception as error:  # files, Arrow and the network stand behind this, each with errors of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data source '{source}' cannot read {where}: {reason}; check that it exists, is complete and of this kind"
        ) from error
    train_rows = _part(source, parts, options.train, where, "train")
    labelled = _Labels.of(train_rows, options, where)
    train = _split(library, train_rows, options, labelled, size, f"{where}, split '{options.train}'")
    if options.holdout:
        train, test = split_validation(train, options.holdout, seed=0)
    else:
        test_rows = _part(source, parts, options.test, where, "test")
        test = _split(library, test_rows, options, labelled, size, f"{where}, split '{options.test}'")
    return ImageData(title, train, test, labelled.classes, options.flip, options.crop_padding)


def _import_datasets(source: str) -> ModuleType:
    try:
        import datasets  # slow to import, and an extra
    except ImportError as error:
        raise ConfigError(
            f"data source '{source}' needs the library 'datasets', which is not installed: pip install 'lowbit[hub]'"
        ) from error
    return datasets


def _part(source: str, parts: Mapping[str, Any], name: str, where: str, role: str) -> Any:
    if name in parts:
        return parts[name]
    advice = f"name the one to use, as in {source}({role}={nearest_split(name, parts)})"
    if role == "test":
        advice += f", or set some training images aside, as in {source}(holdout=0.2)"
    raise DataError(f"{where} has no split '{name}': it has {', '.join(parts)}; {advice}")


def nearest_split(name: str, parts: Mapping[str, Any]) -> str:
    """The split to suggest in place of `name`: the last one that is not the training split, or else the last."""
    others = [part for part in parts if part != "train"] or list(parts)
    return others[-1]


@dataclass(frozen=True)
class _Labels:
    """The columns in use, and how labels become indices."""

    image: str
    label: str
    classes: tuple[str, ...]
    texts: bool  # the column holds class names, not indices

    @classmethod
    def of(cls, rows: Any, options: Options, where: str) -> _Labels:
        features = rows.features
        image = _column(features, options.image, ("image", "img"), "Image", "image", where)
        label = _column(features, options.label, ("label", "labels"), "ClassLabel", "label", where)
        kind = type(features[label]).__name__
        if kind == "ClassLabel":
            return cls(image, label, tuple(features[label].names), texts=False)
        values = list(rows[label])
        if not values:
            raise DataError(f"{where}: the split '{options.train}' is empty; expected at least one image")
        if all(isinstance(value, str) for value in values):
            return cls(image, label, tuple(sorted(set(values))), texts=True)
        if not all(isinstance(value, int) for value in values):
            raise DataError(
                f"{where}, column '{label}' has type {features[label]}; expected class indices or class names"
            )
        return cls(image, label, tuple(str(index) for index in range(max(values) + 1)), texts=False)


def _column(
    features: Mapping[str, Any], wanted: str | None, usual: Sequence[str], kind: str, role: str, where: str
) -> str:
    typed = [name for name, feature in features.items() if type(feature).__name__ == kind]
    named = [name for name in usual if name in features]
    candidates = [wanted] if wanted is not None else typed if len(typed) == 1 else named or typed
    if len(candidates) != 1 or candidates[0] not in features:
        problem = (
            f"no column '{wanted}'"
            if wanted is not None
            else f"{len(candidates) or 'no'} columns that look like the {role}"
        )
        raise DataError(f"{where} has {problem}: it has {', '.join(features)}; name the {role} column with {role}=...")
    return candidates[0]


def _split(
    library: ModuleType, rows: Any, options: Options, labels: _Labels, size: tuple[int, int] | None, where: str
) -> Split:
    for name in (labels.image, labels.label):
        if name not in rows.features:
            raise DataError(f"{where} has no column '{name}': it has {', '.join(rows.features)}")
    try:
        files = list(rows.cast_column(labels.image, library.Image(decode=False))[labels.image])
    except (TypeError, ValueError, NotImplementedError) as error:  # the last is Arrow's for a cast
        given = rows.features[labels.image]
        raise DataError(f"{where}, column '{labels.image}' has type {given}; expected images") from error
    encoded = [_encoded(file, index, where) for index, file in enumerate(files)]
    images = decode_images(encoded, where, channels=options.channels, size=size)
    return Split(images, torch.tensor(_indices(list(rows[labels.label]), labels, where), dtype=torch.int64))


def _encoded(file: Mapping[str, Any] | None, index: int, where: str) -> Encoded:
    if file is None or (file["bytes"] is None and not file["path"]):
        raise DataError(f"row {index} of {where} has no image; expected one per row")
    return file["bytes"] if file["bytes"] is not None else Path(file["path"])


def _indices(values: Sequence[Any], labels: _Labels, where: str) -> list[int]:
    index_of = {name: index for index, name in enumerate(labels.classes)}
    found: list[int] = []
    for row, value in enumerate(values):
        if value is None or (labels.texts and value not in index_of):
            expected = f"one of {', '.join(labels.classes[:8])}" if labels.texts else "a class in every row"
            raise DataError(f"row {row} of {where} has the label {value!r}; expected {expected}")
        found.append(index_of[value] if labels.texts else value)
    return found
