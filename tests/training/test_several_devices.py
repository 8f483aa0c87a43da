"""Two processes on the CPU (gloo) against one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowbit import UnknownNameError
from lowbit.training import TrainConfig, train
from lowbit.training.checkpoint import load_checkpoint
from lowbit.training.config import dump_config

Make = Callable[..., TrainConfig]
Read = Callable[[Path], list[dict[str, Any]]]


@pytest.mark.parametrize("launcher", ["lowbit", "torchrun"])
def test_two_processes_compute_what_one_computes(nets: Path, tiny: Make, records: Read, launcher: str) -> None:
    # Float and without batch normalisation: the mean over the ranks is then exactly the mean over the whole batch.
    config = tiny(model="nets:without_norm", weights=32, activations=32, epochs=2, eval_batch_size=77)
    one = Path(train(config).run)
    (nets / "recipe.yaml").write_text(dump_config(config))
    start = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if launcher == "torchrun" else []
    command = [sys.executable, *start, "-m", "lowbit", "train", "--config", "recipe.yaml", "--devices", "2", "--json"]
    done = subprocess.run(command, cwd=nets, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 2/2") == 1
    (line,) = done.stdout.splitlines()
    (two,) = (nets / "runs").iterdir()
    assert json.loads(line)["run"] == f"runs/{two.name}"
    for a, b in zip(records(one), records(two), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        for name in ("train_accuracy", "val_accuracy", "test_accuracy"):
            assert b[name] == a[name]
    assert len(load_checkpoint(two / "last.ckpt").rng) == 2


def test_an_error_in_the_processes_keeps_its_type_and_message(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown estimator 'cliped': did you mean 'clipped'\?"):
        train(tiny(devices=2, estimator="cliped"))
    assert not (tmp_path / "run").exists()
