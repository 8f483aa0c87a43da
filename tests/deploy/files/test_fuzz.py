"""Mutated artefacts; `python -m benchmarks.fuzz_artefact --mutations 10000` is the long form."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from benchmarks import fuzz_artefact

from lowbit.deploy.files import artefact


def test_mutated_files_are_refused_or_harmless(tmp_path: Path) -> None:
    found = fuzz_artefact.fuzz(500, seed=1, folder=tmp_path)
    assert sum(found.values()) == 500
    assert sum(count for kind, count in found.items() if kind.endswith("refused")) > 400
    assert {kind.partition(":")[0] for kind in found} >= {mutate.__name__ for mutate in fuzz_artefact.DAMAGE}


def test_a_silent_wrong_answer_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.deploy.files import container

    monkeypatch.setattr(container, "_checksum", lambda header, tensors: header.get("sha256"))
    monkeypatch.setattr(container, "read", lambda path: _unchecked(path))
    with pytest.raises(AssertionError, match="silent wrong answer"):
        fuzz_artefact.fuzz(300, seed=1, folder=tmp_path)


def _unchecked(path: Path) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    """`container.read` without its look at the checksum."""
    import safetensors.torch

    from lowbit._errors import ArtefactError
    from lowbit.deploy.files import container

    data = container._bytes(path)
    header = container._lowbit_header(path, container._safetensors_header(path, data))
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:
        raise ArtefactError(str(error)) from None
    header.pop("sha256", None)
    return header, tensors


def test_every_mutation_changes_something() -> None:
    assert artefact.load is not None
    data = bytes(range(256)) * 4
    for mutate in (fuzz_artefact.flip, fuzz_artefact.truncate, fuzz_artefact.extend, fuzz_artefact.cut_out):
        changed = [mutate(data, random.Random(seed)) != data for seed in range(20)]
        assert all(changed), mutate.__name__
