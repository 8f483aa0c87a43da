"""The file: written whole or not at all, and refused with a plain message for whatever is wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import lowbit
from lowbit._errors import ArtefactError
from lowbit.deploy.files import container

TENSORS = {
    "a": torch.arange(7, dtype=torch.uint8),
    "b": torch.tensor([1.5, -2.0]).reshape(1, 2),
    "c": torch.tensor(3.0, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "flag": torch.tensor([True, False]),
    "turned": torch.arange(6).reshape(2, 3).T,
}
CONTENT: dict[str, Any] = {"modules": {"x": 1}, "shared": {}}


def written(tmp_path: Path) -> Path:
    path = tmp_path / "net.lowbit"
    assert container.write(path, CONTENT, TENSORS) == path.stat().st_size
    return path


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put(path: Path, head: dict[str, Any], body: bytes) -> None:
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    header, tensors = container.read(written(tmp_path))
    assert container.library() == lowbit.__version__
    assert header == {"format": "lowbit", "version": 1, "library": lowbit.__version__, **CONTENT}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_any_safetensors_reader_opens_it(tmp_path: Path) -> None:
    assert torch.equal(safetensors.torch.load_file(written(tmp_path))["a"], TENSORS["a"])


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    first = written(tmp_path).read_bytes()
    container.write(tmp_path / "b", CONTENT, dict(reversed(TENSORS.items())))
    assert (tmp_path / "b").read_bytes() == first


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtefactError, match=r"No space left on device.*is untouched"):
        container.write(path, CONTENT, {"a": torch.zeros(3)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("place", ["no folder/a", "."])
def test_places_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    with pytest.raises(ArtefactError, match="cannot be written"):
        container.write(tmp_path / place, CONTENT, TENSORS)
    assert os.listdir(tmp_path) == []


def test_tensors_of_a_kind_the_format_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot be written"):
        container.write(tmp_path / "a", CONTENT, {"a": torch.zeros(2, dtype=torch.complex128)})


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="there is no file"):
        container.read(tmp_path / "a")
    with pytest.raises(ArtefactError, match="cannot be read"):
        container.read(tmp_path)


@pytest.mark.parametrize("data", [b"", b"1234567", b"\x80\x04 a pickle, say", b"\xff" * 20, b"PK\x03\x04" * 9])
def test_other_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArtefactError, match=r"is no .lowbit file: it is not in the safetensors format"):
        container.read(tmp_path / "a")


def test_every_truncation_is_refused_and_most_are_called_that(tmp_path: Path) -> None:
    path = written(tmp_path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        message = "is cut off: its header announces" if length > 8 else "not in the safetensors format"
        with pytest.raises(ArtefactError, match=message):
            container.read(path)


def test_every_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    path = written(tmp_path)
    data = path.read_bytes()
    whole = container.read(path)
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            header, tensors = container.read(path)
        except ArtefactError:
            continue
        assert header == whole[0]
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in whole[1].items())


@pytest.mark.parametrize("tail", [b"\0", b"more"])
def test_bytes_after_the_end_are_refused(tmp_path: Path, tail: bytes) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(ArtefactError, match="is damaged"):
        container.read(path)


def test_a_safetensors_file_of_somebody_else(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "a", {"format": "pt"})
    with pytest.raises(ArtefactError, match="not one that lowbit exported"):
        container.read(tmp_path / "a")


def edited(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def edit(head: dict[str, Any]) -> None:
        header = json.loads(head["__metadata__"]["lowbit"])
        header.update(changes)
        head["__metadata__"]["lowbit"] = json.dumps(header)

    return edit


def renamed(head: dict[str, Any]) -> None:
    head["z"] = head.pop("a")


def other_dtype(head: dict[str, Any]) -> None:
    head["a"]["dtype"] = "I8"


def other_shape(head: dict[str, Any]) -> None:
    head["b"]["shape"] = [2, 1]


def larger(head: dict[str, Any]) -> None:
    head["b"]["shape"] = [2**30, 2**20]


def more_metadata(head: dict[str, Any]) -> None:
    head["__metadata__"]["format"] = "pt"


def no_json(head: dict[str, Any]) -> None:
    head["__metadata__"]["lowbit"] = "{"


def deep(head: dict[str, Any]) -> None:
    head["__metadata__"]["lowbit"] = "[" * 200_000


def not_a_number(head: dict[str, Any]) -> None:
    head["__metadata__"]["lowbit"] = head["__metadata__"]["lowbit"].replace('"x":1', '"x":NaN')


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited(format="other"), "has the format 'other': expected 'lowbit'"),
        (
            edited(version=2),
            r"has version 2 of the format, this lowbit .* reads version 1: load it with a newer lowbit",
        ),
        (edited(version=0), "has version 0 of the format.*load it with another lowbit"),
        (edited(version="1"), "has version '1'"),
        (edited(version=True), "has version True"),
        (edited(modules={}), "was changed after it was written.*does not match its checksum"),
        (edited(sha256=None), "does not match its checksum"),
        (edited(library="9"), "does not match its checksum"),
        (renamed, "does not match its checksum"),
        (other_dtype, "does not match its checksum"),
        (other_shape, "does not match its checksum"),
        (larger, "is damaged"),
        (more_metadata, "has metadata that lowbit does not write"),
        (no_json, "its header is not JSON"),
        (deep, "its header is not"),
        (not_a_number, "NaN is no JSON number"),
    ],
)
def test_edited_headers(tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    path = written(tmp_path)
    head, body = parts(path)
    edit(head)
    put(path, head, body)
    with pytest.raises(ArtefactError, match=message):
        container.read(path)


def test_swapped_tensors_are_refused(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {"a": torch.zeros(4), "b": torch.ones(4)}
    path = tmp_path / "a"
    container.write(path, CONTENT, tensors)
    head, body = parts(path)
    head["a"], head["b"] = head["b"], head["a"]
    put(path, head, body)
    with pytest.raises(ArtefactError, match="does not match its checksum"):
        container.read(path)
