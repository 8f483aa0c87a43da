"""Handwritten digits, 8 × 8: the data set that comes with scikit-learn, so that everything runs without a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lowbit._errors import DataError
from lowbit.data._core import DATA, ImageData, Split

_TEST_SHARE = 0.2


@DATA.register("digits")
def load(path: Path | None = None) -> ImageData:
    """1,797 grey handwritten digits of 8 × 8 pixels, in 10 classes; needs no files.

    Pixels 0..16 become 0..255, rounded. A fixed, stratified fifth is the test split, the same in every run.

    Raises: DataError when a path is given.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (the test part), UCI, 1998; distributed
    with scikit-learn.
    """
    if path is not None:
        raise DataError(
            f"data source 'digits' comes with scikit-learn and reads no files, but '{path}' was given; omit the path"
        )
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images, labels = torch.from_numpy(pixels)[:, None], torch.from_numpy(bunch.target.astype(np.int64))
    test = _stratified(bunch.target)
    return ImageData(
        name="digits",
        train=Split(images[~test], labels[~test]),
        test=Split(images[test], labels[test]),
        classes=tuple(str(digit) for digit in range(10)),
    )


def _stratified(target: np.ndarray[tuple[int], np.dtype[np.int64]]) -> torch.Tensor:
    chosen = np.zeros(len(target), dtype=bool)
    # RandomState, not Generator: NumPy promises that its numbers never change.
    random = np.random.RandomState(0)
    for digit in np.unique(target):
        members = np.flatnonzero(target == digit)
        chosen[random.permutation(members)[: round(_TEST_SHARE * len(members))]] = True
    return torch.from_numpy(chosen)
