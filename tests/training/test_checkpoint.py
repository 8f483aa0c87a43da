from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lowbit import CheckpointError
from lowbit.training import checkpoint as module
from lowbit.training.checkpoint import Checkpoint, load_checkpoint, load_state, save_checkpoint


def _checkpoint(epoch: int = 1) -> Checkpoint:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return Checkpoint(
        epoch=epoch,
        config={"model": "mlp", "milestones": [0.5]},
        classes=["a", "b"],
        normalization={"mean": [0.5], "std": [0.25]},
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        method={},
        guard={"first": [1.0], "recent": []},
        monitor={"levels": torch.zeros(4, dtype=torch.uint8)},
        rng=[{"cpu": torch.get_rng_state()}],
        history=[{"epoch": 1, "val_accuracy": None}],
    )


def test_round_trip(tmp_path: Path) -> None:
    saved = _checkpoint()
    save_checkpoint(tmp_path / "last.ckpt", saved)
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    assert str(asdict(loaded)) == str(asdict(saved))
    for name in ("model", "optimizer", "rng"):
        torch.testing.assert_close(getattr(loaded, name), getattr(saved, name), rtol=0, atol=0)
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_the_file_loads_without_running_code(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.ckpt", _checkpoint())
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (content["format"], content["version"]) == ("lowbit checkpoint", 2)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_file_cut_off_anywhere_is_reported_in_plain_words(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, _checkpoint())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(CheckpointError, match=r"last\.ckpt' \(\d+ bytes\) is damaged or cut off"):
        load_checkpoint(path)


def test_missing_files_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_checkpoint(tmp_path / "last.ckpt")
    save_checkpoint(tmp_path / "last.ckpt", _checkpoint())
    with pytest.raises(CheckpointError, match=r"the folder holds last\.ckpt"):
        load_checkpoint(tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match="there is no folder"):
        load_checkpoint(tmp_path / "gone" / "best.ckpt")


def test_files_of_another_kind_or_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"weight": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="not a lowbit checkpoint"):
        load_checkpoint(path)
    torch.save({"format": "lowbit checkpoint", "version": 99}, path)
    with pytest.raises(CheckpointError, match="version 99, this lowbit reads version 2"):
        load_checkpoint(path)
    torch.save({"format": "lowbit checkpoint", "version": 2, "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="lacks classes, config, guard"):
        load_checkpoint(path)


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_a_crash_while_saving_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, _checkpoint(epoch=1))

    def crash(*arguments: object) -> None:
        if moment == "writing":
            arguments[1].write(b"half of it")  # type: ignore[attr-defined]
        raise OSError("No space left on device")

    monkeypatch.setattr(*((module.torch, "save") if moment == "writing" else (module.os, "replace")), crash)  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="No space left on device; the previous one is untouched"):
        save_checkpoint(path, replace(_checkpoint(), epoch=2))
    monkeypatch.undo()
    assert load_checkpoint(path).epoch == 1
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_weights_that_do_not_fit_are_listed() -> None:
    model = nn.Linear(2, 2)
    state = {"weight": torch.ones(3, 2), "extra": torch.ones(1)}
    with pytest.raises(CheckpointError) as error:
        load_state(model, state, "the file")
    message = str(error.value)
    assert "missing bias" in message
    assert "unexpected extra" in message
    assert "weight has shape (3, 2) instead of (2, 2)" in message
