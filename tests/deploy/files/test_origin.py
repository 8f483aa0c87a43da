"""Where an exported model comes from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lowbit
from lowbit import ArtefactError, ConfigError, UnknownNameError
from lowbit.deploy import Origin, open_artefact, read_origin, rebuild, save
from lowbit.deploy.files import container
from lowbit.models import build_model

ORIGIN = Origin("mlp(hidden=(8, 8))", ("a", "b", "c"), 2, (3, 4), (0.1, 1 / 3), (0.5, 1e-3), "digits", "last", 4)
IMAGES = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0))


def trained() -> nn.Module:
    model = lowbit.convert(build_model(ORIGIN.model, 3, 2, (3, 4), seed=5), weights=2, activations=2)
    lowbit.calibrate(model, IMAGES)
    return model.eval()


def test_plain_values_and_back() -> None:
    assert Origin.from_json(json.loads(json.dumps(ORIGIN.to_json()))) == ORIGIN


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 3),
        ("classes", ()),
        ("classes", ("a", 1)),
        ("classes", "abc"),
        ("in_channels", 0),
        ("in_channels", True),
        ("in_channels", 2.0),
        ("image_size", (3,)),
        ("image_size", (3, 0)),
        ("image_size", 3),
        ("mean", (0.1,)),
        ("mean", (0.1, math.nan)),
        ("mean", (0.1, "0.2")),
        ("std", (0.1, 0.0)),
        ("std", (0.1, math.inf)),
        ("data", None),
        ("checkpoint", 1),
        ("epoch", -1),
    ],
)
def test_values_that_cannot_be_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"the origin's {field} is"):
        replace(ORIGIN, **{field: value})
    with pytest.raises(ArtefactError, match="its origin is damaged"):
        Origin.from_json({**ORIGIN.to_json(), field: value})


@pytest.mark.parametrize("values", [None, [], "x", {}, {**ORIGIN.to_json(), "more": 1}])
def test_other_entries_are_refused(values: Any) -> None:
    with pytest.raises(ArtefactError, match="its origin is damaged: it has other entries"):
        Origin.from_json(values)


def test_a_file_holds_it_under_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.lowbit"
    model = trained()
    save(model, path, ORIGIN)
    assert read_origin(path) == ORIGIN
    assert torch.equal(rebuild(path)(IMAGES), model(IMAGES))
    assert torch.equal(lowbit.load(trained(), path)(IMAGES), model(IMAGES))
    data = path.read_bytes()
    assert b"digits" in data
    path.write_bytes(data.replace(b"digits", b"fidgit"))
    with pytest.raises(ArtefactError, match="does not match its checksum"):
        read_origin(path)


def test_a_damaged_one_with_a_right_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.lowbit"
    save(trained(), path)
    header, tensors = container.read(path)
    container.write(path, {**header, "origin": {"model": "mlp"}}, tensors)
    with pytest.raises(ArtefactError, match="its origin is damaged"):
        read_origin(path)
    with pytest.raises(ArtefactError, match="its origin is damaged"):
        lowbit.load(trained(), path)


def test_a_file_without_one(tmp_path: Path) -> None:
    save(trained(), tmp_path / "a.lowbit")
    assert read_origin(tmp_path / "a.lowbit") is None
    for use in (rebuild, lambda path: open_artefact(path, threads=1)):
        with pytest.raises(ArtefactError, match="does not say what its model was made of"):
            use(tmp_path / "a.lowbit")


def test_no_code_runs_because_a_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.lowbit"
    save(trained(), path, replace(ORIGIN, model="no_such_module:f"))
    with pytest.raises(ConfigError, match="lowbit runs no code because a file says so"):
        rebuild(path)
    with pytest.raises(UnknownNameError, match="no module 'no_such_module'"):
        rebuild(path, "no_such_module:f")
    assert torch.equal(rebuild(path, ORIGIN.model)(IMAGES), trained()(IMAGES))


@pytest.mark.parametrize("name", ["a.onnx", "a.qonnx"])
def test_onnx_files_hold_it_too(tmp_path: Path, name: str) -> None:
    for package in ("onnxscript", "onnxruntime", "qonnx", "torch.onnx.ops"):
        pytest.importorskip(package)
    onnx = pytest.importorskip("onnx")
    model, path = trained(), tmp_path / name
    lowbit.export(model, path, IMAGES, origin=ORIGIN)
    assert read_origin(path) == ORIGIN
    opened = open_artefact(path, threads=1)
    torch.testing.assert_close(opened.run(IMAGES), model(IMAGES))
    file = onnx.load(path)
    for entry in file.metadata_props:
        if entry.key == "lowbit_origin":
            entry.value = "{"
    onnx.save(file, path)
    with pytest.raises(ArtefactError, match="its origin is not JSON"):
        read_origin(path)
    lowbit.export(model, path, IMAGES)
    assert read_origin(path) is None
