"""Experiments on a finished run: what the last hidden layer does, and whether other estimators leave the minimum."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lowbit import CheckpointError, ConfigError, DataError
from lowbit.diagnostics.features import class_subspaces
from lowbit.diagnostics.repulsion import Descent
from lowbit.training import TrainConfig, evaluate, train
from lowbit.training import look as look_module
from lowbit.training.look import features_of_run, repel_run
from lowbit.training.reopen import open_run
from lowbit.training.runtime import launch
from lowbit.training.task import Task

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, two hidden layers, 2-bit activations in the place of the ReLUs, float weights."""
    out = tmp_path_factory.mktemp("look") / "run"
    small = TrainConfig(model="mlp(hidden=(32, 24))", epochs=3, batch_size=64, threads=1, device="cpu", out=out, lr=0.1)
    options = {"weights": 32, "activations": 2, "activation_quantizer": "staircase", "optimizer": "sgd"}
    train(TrainConfig(**{**vars(small), **options}))
    return out


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are empty files: drawing takes longer than all the rest."""
    for name in ("plot_features", "plot_repulsion"):
        monkeypatch.setattr(look_module, name, lambda path, **_: path.write_bytes(b""))


def _reopened(run: Path) -> tuple[nn.Module, Task]:
    saved = open_run(run, "best", None, "cpu")
    return launch(lambda fabric, _: saved.rebuild(fabric), saved.config)


def test_the_features_of_a_run_are_those_of_its_training_images(run: Path) -> None:
    result = features_of_run(run, device="cpu")
    model, task = _reopened(run)
    images = (task.train.images.float() / 255 - task.normalization.mean[0]) / task.normalization.std[0]
    features = model.eval()[:-1](images).detach()  # type: ignore[index]
    expected = class_subspaces(features, task.train.labels)
    assert (result.report.layer, result.report.width) == ("classifier", 24)
    assert result.report.images == len(task.train) < len(task.train) + len(task.validation)
    for found, wanted in zip(result.report.classes, expected.classes, strict=True):
        assert (found.dimension_90, found.images) == (wanted.dimension_90, wanted.images)
        assert found.singular_values == pytest.approx(wanted.singular_values, rel=1e-4, abs=1e-5)
    angles = torch.tensor(expected.mean_angle)
    assert torch.allclose(torch.tensor(result.report.mean_angle), angles, atol=0.01)
    pixels = class_subspaces(task.train.images.flatten(1) / 255, task.train.labels)
    assert result.pixels is not None
    assert result.pixels.mean_angle == pixels.mean_angle
    assert (result.checkpoint, result.run) == ("best.ckpt", str(run))
    picture, numbers = map(Path, result.files)
    assert [picture, numbers] == [run / "features" / "features.png", run / "features" / "features.json"]
    assert picture.read_bytes().startswith(PNG)
    written = json.loads(numbers.read_text())
    assert written["report"]["dimensions"] == result.report.dimensions
    assert "pixels:   " in result.render()


@pytest.mark.usefixtures("undrawn")
def test_some_images_a_dimension_and_a_folder_may_be_asked_for(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er"
    results = [features_of_run(run, "last", images=300, dimension=2, out=out, device="cpu") for _ in range(2)]
    assert results[0] == results[1]  # the same images, over what was there
    assert results[0].report.images == 300
    assert results[0].report.dimensions == [2] * 10
    assert (results[0].checkpoint, results[0].epoch) == ("last.ckpt", 3)
    assert sorted(path.name for path in out.iterdir()) == ["features.json", "features.png"]


@pytest.mark.usefixtures("undrawn")
def test_large_images_are_not_measured_pixel_by_pixel(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_module, "WIDEST", 63)
    result = features_of_run(run, images=300, out=tmp_path / "f", device="cpu")
    assert result.pixels is None
    assert json.loads((tmp_path / "f" / "features.json").read_text())["pixels"] is None


def test_repulsion_starts_where_the_run_ended_and_leaves_it_alone(run: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.glob("*.ckpt")}
    descent = Descent(steps=30, lr=0.2, every=10)
    result = repel_run(run, ["identity", "relu"], descent, batch_size=100, images=10**6, out=tmp_path, device="cpu")
    report = result.report
    assert [walk.estimator for walk in report.walks] == ["clipped", "identity", "relu"]
    _, task = _reopened(run)
    assert (report.images, report.batch_size) == (len(task.train), 100)
    saved = open_run(run, "last", None, "cpu")

    def loss(fabric: object, _: object) -> float:
        model, task = saved.rebuild(fabric)  # type: ignore[arg-type]
        images = (task.train.images.float() / 255 - task.normalization.mean[0]) / task.normalization.std[0]
        return float(nn.functional.cross_entropy(model.eval()(images), task.train.labels).detach())

    assert report.walks[0].initial == pytest.approx(launch(loss, saved.config), rel=1e-4)
    assert all(len(walk.losses) == 4 for walk in report.walks)
    assert len({walk.final for walk in report.walks}) == 3
    assert {path.name: path.read_bytes() for path in run.glob("*.ckpt")} == before
    assert not (run / "repulsion").exists()
    assert (tmp_path / "repulsion.png").read_bytes().startswith(PNG)
    written = json.loads((tmp_path / "repulsion.json").read_text())
    assert written["report"]["walks"][1]["losses"] == report.walks[1].losses
    assert result.render().startswith(f"{run}, last.ckpt (epoch 3)\n")


@pytest.mark.usefixtures("undrawn")
def test_the_seed_orders_the_images_and_keeps_the_split(run: Path, tmp_path: Path) -> None:
    def repel(seed: int) -> list[float]:
        descent = Descent(steps=3, seed=seed)
        result = repel_run(run, [], descent, images=10**6, out=tmp_path, device="cpu")
        return [result.report.walks[0].initial, *result.report.walks[0].batch_losses]

    first, again, other = repel(0), repel(0), repel(1)
    assert first == again
    assert first[0] == pytest.approx(other[0], rel=1e-6)  # the same training images, all of them
    assert first[1:] != other[1:]


@pytest.mark.usefixtures("undrawn")
def test_mistakes_are_said_in_words(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="images is 0"):
        features_of_run(run, images=0)
    with pytest.raises(ConfigError, match="dimension is 25, expected a whole number from 1 to 24"):
        features_of_run(run, dimension=25, device="cpu")
    with pytest.raises(DataError, match=r"class '\d' has none of the images that were looked at"):
        features_of_run(run, images=5, device="cpu")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        repel_run(run, batch_size=0)
    with pytest.raises(ConfigError, match="images is -1"):
        repel_run(run, images=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another --out"):
        features_of_run(run, images=300, out=tmp_path / "file", device="cpu")
    for function in (features_of_run, repel_run, evaluate):
        with pytest.raises(CheckpointError, match="there is no folder"):
            function(tmp_path / "gone")


def test_a_run_without_low_bit_activations_cannot_be_repelled(tiny: Callable[..., TrainConfig]) -> None:
    plain = tiny(epochs=1, weights=1, activations=32)
    train(plain)
    assert plain.out is not None
    with pytest.raises(ConfigError, match="no low-bit activations"):
        repel_run(plain.out, device="cpu")
    (plain.out / "best.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"has no best\.ckpt yet"):
        features_of_run(plain.out)
