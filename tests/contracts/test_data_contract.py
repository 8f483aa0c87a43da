"""What every registered data source promises."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import pytest

from lowbit._errors import DataError
from lowbit.data import DATA

os.environ["HF_HUB_OFFLINE"] = "1"  # before any source imports `datasets`, which reads it once

SOURCES = DATA.names()


def test_there_are_sources() -> None:
    assert {"digits", "mnist", "cifar10", "cifar100", "imagefolder", "parquet", "hub"} <= set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_the_first_docstring_line_describes_the_source(name: str) -> None:
    first = (DATA.get(name).__doc__ or "").partition("\n")[0]
    assert len(first) > 20
    assert first.endswith((".", ";"))


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_called_with_a_path_alone(name: str) -> None:
    parameters = list(inspect.signature(DATA.get(name)).parameters.values())
    assert parameters[0].name == "path"
    assert all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in parameters[1:])


@pytest.mark.parametrize("name", SOURCES)
def test_an_empty_folder_is_a_data_error_that_names_it(name: str, tmp_path: Path) -> None:
    if name in ("imagefolder", "parquet", "hub"):
        pytest.importorskip("datasets", reason="needs the extra 'hub'")
    folder = tmp_path / "nothing here"
    folder.mkdir()
    with pytest.raises(DataError) as caught:
        DATA.get(name)(folder)
    assert str(folder) in str(caught.value)
