"""The loop against a slow twin in plain PyTorch, its repeatability, and what it leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

import lowbit
from lowbit import CheckpointError, ConfigError, DivergedError
from lowbit.data import Batches, Normalization, load_data, split_validation
from lowbit.models import build_model
from lowbit.training import TrainConfig, evaluate, load_config, train
from lowbit.training.checkpoint import load_checkpoint
from lowbit.training.config import resolve

Make = Callable[..., TrainConfig]
Read = Callable[[Path], list[dict[str, Any]]]


def _same_weights(one: Path, other: Path, name: str = "last.ckpt") -> bool:
    a, b = load_checkpoint(one / name).model, load_checkpoint(other / name).model
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _twin(epochs: int, batch_size: int) -> tuple[nn.Module, list[list[float]]]:
    """Train by hand: an MLP, 1-bit weights by ReSTE, 2-bit activations, Adam with two rates, cosine, clipping."""
    data = load_data("digits", None)
    split, _ = split_validation(data.train, 0.1, 3)
    normalization = Normalization.of(data.train)
    batches = Batches(split, batch_size, normalization, device="cpu", shuffle=True, seed=3, drop_last=True)
    model = lowbit.convert(build_model("mlp(hidden=(32, 32))", 10, 1, (8, 8), 3), 1, 2, estimator="reste")
    lowbit.calibrate(model, next(batches.epoch(0))[0])
    latent = [model.get_parameter("fc2.weight")]
    others = [p for p in model.parameters() if p is not latent[0]]
    optimizer = torch.optim.Adam([{"params": latent, "lr": 0.02}, {"params": others, "lr": 0.01}])
    losses = []
    for epoch in range(epochs):
        lowbit.set_progress(model, epoch / (epochs - 1))
        losses.append([])
        for step, (images, labels) in enumerate(batches.epoch(epoch), start=epoch * len(batches)):
            factor = 0.5 * (1 + math.cos(math.pi * step / (epochs * len(batches))))
            for group, rate in zip(optimizer.param_groups, (0.02, 0.01), strict=True):
                group["lr"] = factor * rate
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels, label_smoothing=0.1)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            losses[-1].append(loss.item())
    return model, losses


@pytest.mark.parametrize(("batch_size", "epochs"), [(1294, 6), (128, 3)])
def test_the_loop_is_its_slow_twin(tiny: Make, batch_size: int, epochs: int, records: Read) -> None:
    config = tiny(
        estimator="reste", seed=3, lr=0.01, latent_lr=0.02, schedule="cosine", clip_norm=0.5, label_smoothing=0.1,
        epochs=epochs, batch_size=batch_size, channels_last=False,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, losses = _twin(epochs, batch_size)
    finally:
        torch.set_num_threads(threads)
    result = train(config)
    expected = [sum(epoch) / len(epoch) for epoch in losses]
    assert [line["loss"] for line in records(Path(result.run))] == pytest.approx(expected, rel=1e-14)
    state = load_checkpoint(Path(result.run) / "last.ckpt").model
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_two_runs_with_one_seed_are_identical_and_with_another_are_not(nets: Path, tiny: Make, records: Read) -> None:
    first, second, third = (
        Path(train(tiny(name=name, model="nets:dropout", seed=seed)).run)
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert records(first) == records(second) != records(third)
    assert _same_weights(first, second)
    assert not _same_weights(first, third)


def test_training_puts_back_what_it_sets(tiny: Make) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        state = torch.get_rng_state()
        train(tiny(epochs=1))
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(before)


def test_the_result_and_the_run_folder(tiny: Make) -> None:
    config = tiny(epochs=12, method="ricci", model="lenet5(channels=(4, 8), hidden=16)", batch_size=256)
    result = train(config)
    run = Path(result.run)
    assert {"config.yaml", "environment.json", "metrics.jsonl", "last.ckpt", "best.ckpt"} <= {
        p.name for p in run.iterdir()
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    fixed = ["epoch", "loss", "train_accuracy", "val_accuracy", "test_accuracy", "lr", "latent_lr", "seconds"]
    assert list(lines[0])[:9] == [*fixed, "images_per_second"]
    assert "ricci_n" in lines[0]
    tests = [line["test_accuracy"] for line in lines]
    best = max(lines, key=lambda line: line["val_accuracy"])
    assert result.test_accuracy == tests[-1]
    assert result.best_accuracy == best["test_accuracy"]
    assert result.last10_mean == pytest.approx(sum(tests[2:]) / 10)
    assert (result.loss, result.epochs) == (lines[-1]["loss"], 12)
    assert load_checkpoint(run / "best.ckpt").epoch == best["epoch"]
    assert load_config(run / "config.yaml") == resolve(tiny(**{**vars(config), "out": None}))
    environment = json.loads((run / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == 1


def test_evaluating_a_run_repeats_its_accuracy(tiny: Make) -> None:
    result = train(tiny(epochs=3, precision="bf16", validation=100.0, eval_batch_size=50))
    assert evaluate(Path(result.run), "last", device="cpu").test_accuracy == result.test_accuracy
    best = evaluate(Path(result.run), "best", device="cpu")
    assert best.test_accuracy == result.best_accuracy
    assert best.images == 359
    with pytest.raises(CheckpointError, match="there is no folder"):
        evaluate(Path(result.run) / "gone")


def test_without_validation_the_best_epoch_is_by_test_accuracy(tiny: Make, records: Read) -> None:
    result = train(tiny(epochs=3, validation=0.0))
    lines = records(Path(result.run))
    assert [line["val_accuracy"] for line in lines] == [None] * 3
    assert result.best_accuracy == max(line["test_accuracy"] for line in lines)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "run", "low-bit run"])
def test_a_run_starts_from_given_weights(tiny: Make, tmp_path: Path, kind: str) -> None:
    bits = 1 if kind == "low-bit run" else 32
    first = Path(train(tiny(name="first", weights=bits, activations=32 if bits == 32 else 2)).run)
    state = load_checkpoint(first / "best.ckpt").model
    source = first
    if kind == "safetensors":
        source = tmp_path / "w.safetensors"
        save_file(state, source)
    elif kind == "pt":
        source = tmp_path / "w.pt"
        torch.save(state, source)
    # The smallest rates leave the weights where they started.
    second = train(tiny(name="second", init=source, lr=1e-30, latent_lr=1e-30, epochs=1))
    reached = load_checkpoint(Path(second.run) / "last.ckpt").model
    for name, value in state.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(reached[name], value, rtol=0, atol=1e-20)


def test_weights_of_another_model_are_refused(tiny: Make, tmp_path: Path) -> None:
    torch.save(build_model("mlp(hidden=(32,))", 10, 1, (8, 8), 0).state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"does not fit this model: missing fc2\.weight"):
        train(tiny(init=tmp_path / "w.pt"))
    with pytest.raises(CheckpointError, match="does not exist"):
        train(tiny(init=tmp_path / "none.pt"))
    (tmp_path / "bad.safetensors").write_bytes(b"?")
    with pytest.raises(CheckpointError, match="cannot be read as a state dict"):
        train(tiny(init=tmp_path / "bad.safetensors"))


def test_a_loss_that_explodes_stops_the_run_and_keeps_the_last_good_checkpoint(tiny: Make, records: Read) -> None:
    # Nothing moves in the first epoch; from the second on, the rate is absurd.
    config = tiny(epochs=3, optimizer="sgd", lr=1e-30, schedule="step", milestones=(1.0,), gamma=1e60, weight_decay=1.0)
    with pytest.raises(DivergedError) as error:
        train(config)
    message = str(error.value)
    assert config.out is not None
    assert "training stopped in epoch 2" in message
    assert "--latent-lr" in message
    assert f"{config.out / 'last.ckpt'}, is that of epoch 1" in message
    assert len(records(config.out)) == 1
    assert load_checkpoint(config.out / "last.ckpt").epoch == 1
    assert 0 <= evaluate(config.out, "last", device="cpu").test_accuracy <= 1


def test_a_first_epoch_that_diverges_leaves_the_start(tiny: Make) -> None:
    config = tiny(lr=1e30)
    assert config.out is not None
    with pytest.raises(DivergedError, match=r"last\.ckpt, is that from before the first step"):
        train(config)
    assert sorted(path.name for path in config.out.glob("*.ckpt")) == ["last.ckpt"]
    assert evaluate(config.out, "last", device="cpu").epoch == 0
    with pytest.raises(CheckpointError, match=r"no best\.ckpt yet: .* --checkpoint last"):
        evaluate(config.out, "best", device="cpu")


def test_the_last_epoch_trains_at_the_end_of_the_annealing(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr("lowbit.training.loop.set_progress", lambda model, progress: seen.append(progress))
    train(tiny(name="three", epochs=3))
    train(tiny(name="one", epochs=1))
    assert seen == [0.0, 0.5, 1.0, 0.0]


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"accumulate": 2}], ids=str)
@pytest.mark.parametrize("method", ["ricci(interval=2)", "ricci(mode=faithful)", "metaquant(hidden=4)"])
def test_methods_with_passes_of_their_own_train_under_every_launcher(
    tiny: Make, nets: Path, method: str, changes: dict[str, Any], records: Read
) -> None:
    result = train(tiny(model="nets:dropout", method=method, epochs=2, lr=0.01, **changes))
    assert result.test_accuracy > 0.2
    figure = "ricci_n" if "ricci" in method else "meta_cosine"
    assert records(Path(result.run))[-1][figure] > 0


def test_a_gate_that_stays_shut_is_spoken_of(tiny: Make, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny(method="ricci(interval=1, epsilon=0)", epochs=2))
    said = capsys.readouterr().err
    assert "epoch 2: N stayed above ε, so that the loss did not move fc2; give a larger epsilon" in said
    assert "epoch 1: N stayed" not in said  # at the first step there is no N yet
    train(tiny(name="open", method="ricci(interval=1)", epochs=2))
    assert "N stayed" not in capsys.readouterr().err


def test_one_epoch_of_an_annealed_estimator_is_spoken_of(tiny: Make, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny(estimator="md-tanh", epochs=1))
    assert "--estimator md-tanh changes from epoch to epoch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ricci(tau=50)"}, r"layer 'fc2': at τ = 50 .* the largest admissible τ is"),
        ({"method": "ricci", "estimator": "lne"}, "take the estimator 'identity' or 'clipped', not 'lne'"),
        ({"method": "metaquant", "estimator": "dorefa"}, "not 'dorefa'"),
        ({"method": "metaquant", "weights": 32}, "needs latent weights that move"),
    ],
)
def test_a_method_that_does_not_fit_leaves_no_folder(tiny: Make, settings: dict[str, Any], message: str) -> None:
    config = tiny(**settings)
    with pytest.raises(ConfigError, match=message):
        train(config)
    assert config.out is not None
    assert not config.out.exists()


def test_a_run_without_a_low_bit_layer_is_refused(tiny: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(model="mlp(hidden=(8,))", epochs=1)
    with pytest.raises(ConfigError) as error:
        train(config)
    for part in ("--weights 1 --activations 2", "fc1 (keep_float: first)", "--keep-float with nothing", "--weights 32"):
        assert part in str(error.value)
    assert config.out is not None
    assert not config.out.exists()
    train(replace(config, keep_float=("last",)))
    assert "1 layers converted; kept in float: classifier (keep_float: last)" in capsys.readouterr().err
    train(replace(config, weights=32, activations=32, out=config.out / "float"))


def test_compiling_is_refused_where_every_epoch_would_compile_anew(tiny: Make) -> None:
    with pytest.raises(ConfigError, match="--compile and --estimator reste exclude each other"):
        train(tiny(compile=True, estimator="reste"))


def _scales(run: str) -> dict[str, torch.Tensor]:
    state = load_checkpoint(Path(run) / "last.ckpt").model
    return {name: value for name, value in state.items() if name.endswith("scaling.value")}


def test_step_sizes_of_other_widths_are_learned_afresh(tiny: Make) -> None:
    rates = {"lr": 1e-30, "latent_lr": 1e-30, "epochs": 1}  # the scales stay where calibration put them
    first = train(tiny(name="8 bits", weights=8, activations=8, epochs=1))
    source = Path(first.run) / "last.ckpt"
    kept = _scales(train(tiny(name="again", weights=8, activations=8, init=source, **rates)).run)
    coarse = _scales(train(tiny(name="2 bits", weights=2, activations=2, init=source, **rates)).run)
    signs = _scales(train(tiny(name="1 bit", weights=1, activations=2, init=source, **rates)).run)
    fine = _scales(first.run)
    assert fine.keys() == kept.keys() == coarse.keys() > signs.keys() != set()
    for name, value in fine.items():
        torch.testing.assert_close(kept[name], value, rtol=0, atol=1e-20)
        assert coarse[name].abs().mean() > 2 * value.abs().mean()


def test_a_run_folder_is_never_overwritten(tiny: Make, tmp_path: Path) -> None:
    train(tiny(epochs=1))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="exists and is not empty; continue that run with --resume"):
        train(tiny(epochs=1))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        train(tiny(name="file"))
    (tmp_path / "empty").mkdir()
    assert Path(train(tiny(name="empty", epochs=1)).run) == tmp_path / "empty"


def test_runs_without_a_name_get_one_of_their_own(tiny: Make, nets: Path) -> None:
    names = {train(tiny(model="nets:without_norm", keep_float=("last",), out=None, epochs=1)).run for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("runs/digits-without_norm-w1a2-") for name in names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler uses what torch itself deprecates
@pytest.mark.filterwarnings("ignore:Skipping serialization:UserWarning")  # torch 2.6, of its own configuration
def test_compiled_training_reaches_what_eager_training_reaches(nets: Path, tiny: Make) -> None:
    changes = {"model": "nets:without_norm", "activations": 32, "keep_float": (), "epochs": 1}
    eager = train(tiny(name="eager", **changes))
    compiled = train(tiny(name="compiled", compile=True, **changes))
    assert compiled.loss == pytest.approx(eager.loss, rel=1e-3)
