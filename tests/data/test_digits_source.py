from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lowbit._errors import DataError
from lowbit.data import load_data


def test_the_splits_hold_every_digit_once_rescaled() -> None:
    data = load_data("digits")
    bunch = load_digits()
    assert (data.in_channels, data.image_size, data.num_classes) == (1, (8, 8), 10)
    assert not data.flip
    images = torch.cat((data.train.images, data.test.images)).flatten(1).numpy()
    labels = torch.cat((data.train.labels, data.test.labels)).numpy()
    found = sorted((*row, label) for row, label in zip(images.tolist(), labels.tolist(), strict=True))
    exact = np.floor(bunch.images.reshape(-1, 64) * 255 / 16 + 0.5).astype(int)
    assert found == sorted((*row, label) for row, label in zip(exact.tolist(), bunch.target.tolist(), strict=True))


def test_the_test_split_is_a_stratified_fifth_and_always_the_same() -> None:
    data = load_data("digits")
    per_class = torch.bincount(data.train.labels), torch.bincount(data.test.labels)
    for train, test in zip(*per_class, strict=True):
        assert test == round(0.2 * int(train + test))
    np.random.seed(4)
    assert torch.equal(load_data("digits").test.images, data.test.images)
    # Fixed for good: results on digits are compared across versions.
    assert data.test.labels[:8].tolist() == [3, 7, 3, 9, 0, 8, 7, 0]


def test_a_path_is_an_error() -> None:
    with pytest.raises(DataError, match="reads no files, but 'some/folder' was given"):
        load_data("digits", Path("some/folder"))
