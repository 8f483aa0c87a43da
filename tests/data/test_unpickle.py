from __future__ import annotations

import codecs
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from lowbit._errors import DataError
from lowbit.data._unpickle import load_plain


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_values_are_read(tmp_path: Path, protocol: int) -> None:
    content = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"labels": [1, 2], "t": (1.5, None, True, "é")}
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol=protocol))
    if protocol == 5:
        # Arrays are written through a helper there; the published files are protocol 2.
        with pytest.raises(DataError, match="_frombuffer"):
            load_plain(tmp_path / "x")
        return
    found = load_plain(tmp_path / "x")
    assert np.array_equal(found[b"data"], content[b"data"])
    assert {k: v for k, v in found.items() if k != b"data"} == {b"labels": [1, 2], "t": (1.5, None, True, "é")}


def test_either_name_of_numpys_module_is_read(tmp_path: Path) -> None:
    written = pickle.dumps(np.arange(3), protocol=2)
    for old, new in ((b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")):
        (tmp_path / "x").write_bytes(written.replace(old, new))
        assert load_plain(tmp_path / "x").tolist() == [0, 1, 2]


def test_keys_written_by_python_2_are_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x80\x02}U\x04dataK\x01s.")
    assert load_plain(tmp_path / "x") == {b"data": 1}


class Attack:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (Attack(os.mkdir, "made"), "mkdir"),
        (Attack(eval, "__import__('os').mkdir('made')"), "eval"),
        (Attack(getattr, "x", "upper"), "getattr"),
        (Attack(codecs.encode, "x", "rot13"), "rot13"),
        (Attack(np.load, "x"), "load"),
    ],
)
def test_anything_else_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: Attack, named: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(pickle.dumps({b"data": [attack]}, protocol=protocol))
    with pytest.raises(DataError, match=f"'.*x' cannot be read .*{named}.*download it again"):
        load_plain(tmp_path / "x")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"anything", b"\x80\x02}U\x04da"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=r"'.*x' cannot be read"):
        load_plain(tmp_path / "x")
