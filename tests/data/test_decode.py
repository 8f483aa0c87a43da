from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowbit._errors import ConfigError, DataError
from lowbit.data import _cache, _decode
from lowbit.data._decode import decode_images

Encode = Callable[..., bytes]


def as_tensor(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).movedim(3, 1)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve images are many: worker processes and the cache are used."""
    monkeypatch.setattr(_decode, "_MANY", 5)
    monkeypatch.setattr(_decode, "_workers", lambda: 3)


def test_lossless_images_come_back_exactly(pictures: np.ndarray, encode: Encode, tmp_path: Path) -> None:
    content = [encode(picture) for picture in pictures]
    assert torch.equal(decode_images(content, "here"), as_tensor(pictures))
    (tmp_path / "a.png").write_bytes(content[3])
    assert torch.equal(decode_images([tmp_path / "a.png"], "here"), as_tensor(pictures[3:4]))


def test_jpeg_is_what_pillow_makes_of_it(pictures: np.ndarray, encode: Encode, tmp_path: Path) -> None:
    content = [encode(picture, "JPEG") for picture in pictures]
    (tmp_path / "a.jpg").write_bytes(content[0])
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image)
    assert np.array_equal(decode_images(content, "here")[0].movedim(0, 2).numpy(), expected)


def test_grey_and_colour_are_converted_to_the_channels_asked_for(encode: Encode) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    as_colour = decode_images([encode(grey)], "here")
    assert torch.equal(as_colour, torch.from_numpy(grey).expand(1, 3, 8, 8))
    assert torch.equal(
        decode_images([encode(np.stack([grey] * 3, 2))], "here", channels=1)[0, 0], torch.from_numpy(grey)
    )
    with pytest.raises(ConfigError, match="channels is 2; expected 3"):
        decode_images([encode(grey)], "here", channels=2)


def test_palettes_with_transparency_are_colour(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "a.png", transparency=b"\x00\xff")
    assert decode_images([tmp_path / "a.png"], "here")[0, :, 0, 0].tolist() == [10, 200, 30]


def test_images_are_scaled_to_cover_and_the_centre_is_kept(encode: Encode) -> None:
    # Left quarter, middle half, right quarter: a square crop of a 2:1 image keeps the middle.
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, :4], picture[:, 4:12], picture[:, 12:] = 10, 100, 200
    for content in (encode(picture), encode(picture.transpose(1, 0, 2))):
        for side in (4, 8, 16):
            found = decode_images([content], "here", size=(side, side))
            assert found.shape == (1, 3, side, side)
            assert found.float().mean() == pytest.approx(100, abs=8)
            assert (found[..., side // 2, side // 2] == 100).all()
    assert decode_images([encode(picture)], "here", size=(3, 5)).shape == (1, 3, 3, 5)
    assert torch.equal(decode_images([encode(picture)], "here", size=(8, 16)), as_tensor(picture[None]))


def test_sizes_that_differ_are_named(pictures: np.ndarray, encode: Encode) -> None:
    content = [encode(pictures[0]), encode(pictures[1][:20])]
    with pytest.raises(DataError, match=r"image 1 of here is 20 x 32 pixels and the first is 32 x 32.*image_size"):
        decode_images(content, "here")
    assert decode_images(content, "here", size=(16, 16)).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_damaged_image_is_named(
    workers: int, pictures: np.ndarray, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_decode, "_MANY", 5)
    monkeypatch.setattr(_decode, "_workers", lambda: workers)
    content = [encode(picture, "JPEG") for picture in pictures]
    content[7] = content[7][:-60]
    content[9] = b"not an image"
    with pytest.raises(DataError, match=r"image 7 of here cannot be decoded .*truncated.*it is damaged"):
        decode_images(content, "here")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("keep", [0, 5, 30, 200, 0.5])
def test_a_truncated_image_is_a_data_error(kind: str, keep: float, pictures: np.ndarray, encode: Encode) -> None:
    content = encode(pictures[0], kind)
    kept = content[: int(keep * len(content)) if keep < 1 else int(keep)]
    with pytest.raises(DataError, match="image 0 of here cannot be decoded"):
        decode_images([kept], "here")


def test_a_damaged_file_is_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    with pytest.raises(DataError, match=r"image '.*a.png' cannot be decoded"):
        decode_images([tmp_path / "a.png"], "here")


def test_sixteen_bits_are_refused(encode: Encode) -> None:
    content = encode(np.full((4, 4), 30_000, np.uint16))
    with pytest.raises(DataError, match="image 0 of here has more than 8 bits per channel"):
        decode_images([content], "here")


def test_no_images_are_an_error() -> None:
    with pytest.raises(DataError, match="here holds no images"):
        decode_images([], "here")


@pytest.mark.usefixtures("many")
def test_worker_processes_and_the_cache_give_the_same(pictures: np.ndarray, encode: Encode, cache: Path) -> None:
    content = [encode(picture) for picture in pictures]
    for _ in range(2):
        assert torch.equal(decode_images(content, "here"), as_tensor(pictures))
    assert len(list(cache.iterdir())) == 1


@pytest.mark.usefixtures("many")
def test_a_worker_that_dies_is_reported(pictures: np.ndarray, encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_decode, "_decode_range", lambda *given: os._exit(9))
    with pytest.raises(DataError, match="a process that decodes images died"):
        decode_images([encode(picture) for picture in pictures], "here")


@pytest.mark.usefixtures("many")
def test_the_cache_is_read_and_told_apart_by_content_and_options(
    pictures: np.ndarray, encode: Encode, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = [encode(picture) for picture in pictures]
    first = decode_images(content, "here")
    with monkeypatch.context() as patch:
        patch.setattr(_decode, "_decode_in_processes", lambda *given: pytest.fail("decoded again"))
        assert torch.equal(decode_images(content, "elsewhere"), first)
    assert torch.equal(decode_images(content[::-1], "here"), first.flip(0))
    assert decode_images(content, "here", size=(8, 8)).shape == (12, 3, 8, 8)
    assert decode_images(content, "here", channels=1).shape == (12, 1, 32, 32)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00rest", b"anything"])
def test_a_damaged_cache_entry_is_decoded_anew(
    damage: bytes, pictures: np.ndarray, encode: Encode, cache: Path
) -> None:
    content = [encode(picture) for picture in pictures]
    first = decode_images(content, "here")
    [entry] = cache.iterdir()
    good = entry.read_bytes()
    entry.write_bytes(damage or good[:-100])
    assert torch.equal(decode_images(content, "here"), first)
    assert entry.read_bytes() == good


@pytest.mark.usefixtures("many")
def test_a_changed_file_is_decoded_anew(pictures: np.ndarray, encode: Encode, tmp_path: Path) -> None:
    files = [tmp_path / f"{k}.png" for k in range(12)]
    for file, picture in zip(files, pictures, strict=True):
        file.write_bytes(encode(picture))
    decode_images(files, "here")
    files[4].write_bytes(encode(255 - pictures[4]))
    os.utime(files[4], ns=(1, 1))
    assert torch.equal(decode_images(files, "here")[4], as_tensor(255 - pictures)[4])


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOWBIT_CACHE", "off")
    assert _cache.folder() is None
    assert _cache.load("x") is None
    _cache.save("x", np.zeros(3, np.uint8))
    monkeypatch.delenv("LOWBIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _cache.folder() == tmp_path / "lowbit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert _cache.folder() == tmp_path / "home" / ".cache" / "lowbit"


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "file"))
    _cache.save("x", np.zeros(3, np.uint8))
    assert _cache.load("x") is None
