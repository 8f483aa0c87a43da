from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit._errors import ConfigError, DataError, UnknownNameError
from lowbit.data import ImageData, Normalization, Split, load_data, split_validation


def split(count: int, shape: tuple[int, int, int] = (3, 4, 5), classes: int = 2) -> Split:
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return Split(images, torch.arange(count) % classes)


def test_shapes_are_read_from_the_images() -> None:
    data = ImageData("mine", split(6), split(2), ("a", "b"))
    assert (data.num_classes, data.in_channels, data.image_size) == (2, 3, (4, 5))
    assert (len(data.train), len(data.test)) == (6, 2)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), r"float32 \[2, 1, 4, 4\]; expected torch.uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"expected torch.uint8 \[N, C"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"expected torch.int64 \[2\]"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), "float32"),
    ],
)
def test_a_split_refuses_other_types_and_shapes(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Split(images, labels)


def test_data_refuses_labels_out_of_range_unlike_splits_and_empty_ones() -> None:
    with pytest.raises(DataError, match=r"image 2 of the train split has label 2; expected 0..1"):
        ImageData("mine", split(6, classes=3), split(2), ("a", "b"))
    with pytest.raises(DataError, match="image 1 of the test split has label -1"):
        ImageData("mine", split(6), Split(split(2).images, torch.tensor([0, -1])), ("a", "b"))
    with pytest.raises(DataError, match="one shape"):
        ImageData("mine", split(6), split(2, (1, 4, 5)), ("a", "b"))
    with pytest.raises(DataError, match="the test split is empty"):
        ImageData("mine", split(6), split(0), ("a", "b"))


@settings(deadline=None)
@given(count=st.integers(2, 80), share=st.floats(0, 0.95), seed=st.integers(0, 2**32))
def test_validation_partitions_the_training_split(count: int, share: float, seed: int) -> None:
    whole = Split(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.arange(count))
    amount = round(share * count)
    if amount >= count:
        return
    train, validation = split_validation(whole, share, seed)
    assert len(validation) == amount
    assert sorted(train.labels.tolist() + validation.labels.tolist()) == list(range(count))
    assert train.labels.tolist() == sorted(train.labels.tolist())
    by_count, _ = split_validation(whole, amount, seed)
    assert torch.equal(by_count.labels, train.labels)


def test_validation_depends_on_the_seed_alone() -> None:
    whole = split(50)
    first = split_validation(whole, 0.4, 1)
    torch.manual_seed(99)
    assert torch.equal(split_validation(whole, 0.4, 1)[1].images, first[1].images)
    assert not torch.equal(split_validation(whole, 0.4, 2)[1].images, first[1].images)


def test_no_validation_leaves_the_training_split_alone() -> None:
    whole = split(5)
    train, validation = split_validation(whole, 0, 1)
    assert train is whole
    assert validation.images.shape == (0, 3, 4, 5)


@pytest.mark.parametrize("amount", [-1, 5, 6, -0.1, 1.0, 0.99, True, float("nan"), "3"])
def test_validation_out_of_range_is_refused(amount: float) -> None:
    with pytest.raises(ConfigError, match=r"expected a fraction in \[0, 1\) or a number of images below 5"):
        split_validation(split(5), amount, 0)


def test_normalization_is_mean_and_population_std_per_channel() -> None:
    images = split(40).images
    found = Normalization.of(split(40))
    pixels = images.double().movedim(1, 0).flatten(1) / 255
    torch.testing.assert_close(torch.tensor(found.mean, dtype=torch.float64), pixels.mean(1))
    torch.testing.assert_close(torch.tensor(found.std, dtype=torch.float64), pixels.std(1, correction=0))


def test_normalization_of_a_constant_channel_has_std_1() -> None:
    images = torch.full((4, 1, 3, 3), 51, dtype=torch.uint8)
    found = Normalization.of(Split(images, torch.zeros(4, dtype=torch.int64)))
    assert found.std == (1.0,)
    assert found.mean == pytest.approx((0.2,))


def test_normalization_refuses_what_cannot_be_divided_by() -> None:
    with pytest.raises(ConfigError, match="positive"):
        Normalization((0.5,), (0.0,))
    with pytest.raises(ConfigError, match="2 means and 1 stds"):
        Normalization((0.5, 0.5), (1.0,))
    with pytest.raises(DataError, match="empty split"):
        Normalization.of(split(0))


USER_MODULE = """
import torch
from lowbit.data import ImageData, Split

def _split(n):
    return Split(torch.zeros(n, 1, 2, 2, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))

def load(n=3, path=None):
    return ImageData(f"mine {path}", _split(n), _split(1), ("only",))

def without_path(n=3):
    return load(n)

def wrong():
    return [1, 2]
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_images.py").write_text(USER_MODULE)
    (tmp_path / "users_broken.py").write_text("1 / 0")
    (tmp_path / "users_needy.py").write_text("import not_a_library_anyone_has")
    monkeypatch.chdir(tmp_path)
    return "users_images"


def test_a_function_of_the_users_own_is_called_with_options_and_path(user_module: str) -> None:
    assert len(load_data(f"{user_module}:load(n=7)").train) == 7
    assert load_data(f"{user_module}:load", Path("there")).name == "mine there"
    assert len(load_data(f"{user_module}:without_path(n=2)").train) == 2


@pytest.mark.parametrize(
    ("spec", "path", "error", "message"),
    [
        ("users_images:without_path", Path("there"), ConfigError, "takes no path, but 'there' was given"),
        ("users_images:wrong", None, DataError, "returned a list; it must return a lowbit.data.ImageData"),
        ("users_images:loda", None, UnknownNameError, "has no 'loda': did you mean 'load'"),
        ("users_images:load(m=3)", None, UnknownNameError, "no option 'm'"),
        ("no_such_module_here:load", None, UnknownNameError, "no module 'no_such_module_here'"),
        ("users_broken:load", None, ConfigError, "does not import: ZeroDivisionError"),
        ("users_needy:load", None, ConfigError, "needs 'not_a_library_anyone_has'"),
        (":load", None, ConfigError, "package.module:function"),
        ("cifar11", None, UnknownNameError, "did you mean 'cifar10'"),
        ("digits(size=3)", None, UnknownNameError, "no option 'size'"),
        ("mnist(path=here)", Path("there"), ConfigError, "'here' in its options and 'there' besides"),
    ],
)
@pytest.mark.usefixtures("user_module")
def test_mistakes_in_a_spec_are_named(spec: str, path: Path | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_data(spec, path)


def test_a_path_may_be_an_option(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mnist.*not_here' does not exist"):
        load_data(f"mnist(path='{tmp_path / 'not_here'}')")
