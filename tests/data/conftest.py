"""Synthetic image files, and a place of its own for everything that is cached."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

# `datasets` reads these when it is first imported, which is before any fixture could set them.
_hub = tempfile.mkdtemp(prefix="lowbit-hub-")
atexit.register(shutil.rmtree, _hub, ignore_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = _hub


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LOWBIT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = os.environ.get("LOWBIT_TEST_DATA")
    if not folder:
        pytest.skip("needs real data: set LOWBIT_TEST_DATA to a folder with mnist/ and cifar10-jpeg/")
    return Path(folder)


def encode_image(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def encode() -> Callable[..., bytes]:
    return encode_image


@pytest.fixture
def pictures() -> np.ndarray:
    """Twelve colour images, 32 × 32, every pixel different."""
    return np.random.default_rng(5).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def write_parquet() -> Callable[..., None]:
    def write(
        path: Path,
        images: Sequence[bytes | None],
        labels: Sequence[object],
        image: str = "img",
        label: str = "label",
    ) -> None:
        rows = [{"bytes": content, "path": None} for content in images]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({image: pa.array(rows, kind), label: pa.array(labels)}), path)

    return write
