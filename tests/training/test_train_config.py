from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lowbit import CheckpointError, ConfigError
from lowbit.training.config import (
    TrainConfig,
    dump_config,
    from_dict,
    load_config,
    parse_overrides,
    resolve,
    resumed_config,
    to_dict,
)


def _file(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = resolve(
        TrainConfig(
            data_path=tmp_path, lr=1e-5, clip_norm=2.0, milestones=(0.25, 3.0), overrides=("fc(float=True)",), seed=7
        )
    )
    assert load_config(_file(tmp_path, dump_config(config))) == config


def test_a_file_names_only_what_it_changes(tmp_path: Path) -> None:
    config = load_config(_file(tmp_path, "model: resnet20\nlr: 1e-3\nmilestones: [1, 2]\nclip_norm: null\nepochs: 4\n"))
    assert config == TrainConfig(model="resnet20", lr=0.001, milestones=(1.0, 2.0), epochs=4)
    assert isinstance(config.milestones[0], float)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(_file(tmp_path, "# nothing\n")) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("estimater: ewgs", ["recipe.yaml", "unknown key 'estimater'", "did you mean 'estimator'?"]),
        ("epochs: many", ["recipe.yaml", "epochs is 'many'", "a whole number"]),
        ("epochs: 2.5", ["epochs is 2.5", "a whole number"]),
        ("epochs: true", ["epochs is True", "a whole number"]),
        ("lr: fast", ["lr is 'fast'", "a number"]),
        ("lr: true", ["lr is True", "a number"]),
        ("compile: 1", ["compile is 1", "true or false"]),
        ("model: 3", ["model is 3", "text"]),
        ("data_path: 3", ["data_path is 3", "a path"]),
        ("keep_float: first", ["keep_float is 'first'", "a list"]),
        ("keep_float: [1]", ["keep_float is 1", "text"]),
        ("optimizer: adan", ["yaml: optimizer: 'adan' is not one of sgd, adam, adamw", "did you mean 'adam'?"]),
        ("version: 99", ["version 99", "reads version 1"]),
        ("- a\n- b", ["key: value"]),
        ("a: [", ["not valid YAML"]),
    ],
)
def test_a_mistake_in_a_file_names_key_file_and_remedy(tmp_path: Path, text: str, says: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(_file(tmp_path, text))
    for part in says:
        assert part in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml' does not exist"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": 0.0}, "--lr is 0.0, expected a number above 0"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"momentum": 1.0}, "--momentum is 1.0"),
        ({"label_smoothing": 1.0}, "--label-smoothing is 1.0"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"threads": 0}, "--threads is 0"),
        ({"diagnostics": -1}, "--diagnostics is -1, expected a number of steps, or 0 for none"),
        ({"mismatch_samples": -1}, "--mismatch-samples is -1"),
        ({"mismatch_samples": 1}, "--mismatch-samples is 1, expected 2 or more"),
        ({"accumulate": 0}, "--accumulate is 0, expected 1 or more"),
        ({"accumulate": 5, "devices": 2}, "--accumulate 5 cannot cut the 32 images that each device gets"),
        ({"weights": 9}, "--weights is 9 bits, expected 1 to 8, or 32"),
        ({"activations": 0}, "--activations is 0 bits"),
        ({"validation": 1.5}, "--validation is 1.5"),
        ({"validation": -0.1}, "--validation is -0.1"),
        ({"batch_size": 65, "devices": 2}, "--batch-size 65 cannot be shared equally by --devices 2"),
        ({"milestones": (0.0,)}, "--milestones"),
        ({"schedule": "onecycle", "warmup_epochs": 1.0}, "exclude each other"),
        ({"schedule": "cosine", "warmup_epochs": 20.0}, "leaves nothing of --epochs"),
        ({"overrides": ("fc",)}, "--overrides 'fc' names no option"),
    ],
)
def test_a_value_out_of_range_names_its_option(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(replace(TrainConfig(), **changes))  # type: ignore[arg-type]
    assert says in str(error.value)


def test_resolving_fills_in_what_depends_on_others() -> None:
    assert resolve(TrainConfig(optimizer="sgd")).lr == 0.1
    assert resolve(TrainConfig(optimizer="adamw")).latent_lr == 0.003
    given = resolve(TrainConfig(lr=0.5, latent_lr=2.0, latent_weight_decay=1e-4, weight_decay=5e-4))
    assert (given.lr, given.latent_lr, given.latent_weight_decay) == (0.5, 2.0, 1e-4)
    assert resolve(TrainConfig(weight_decay=5e-4)).latent_weight_decay is None  # it depends on each layer's bits
    assert resolve(given) == given


def test_a_relative_data_path_is_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve(TrainConfig(data_path=Path("here"))).data_path == tmp_path / "here"


def test_overrides_become_options_by_pattern() -> None:
    parsed = parse_overrides(("layer3.*(weights=2, activations=8)", "fc(float=True)", "b(estimator='ewgs(delta=0.1)')"))
    expected = {"layer3.*": {"weights": 2, "activations": 8}, "fc": "float", "b": {"estimator": "ewgs(delta=0.1)"}}
    assert parsed == expected


def test_plain_values_leave_out_where_the_run_lives(tmp_path: Path) -> None:
    plain = to_dict(TrainConfig(out=tmp_path, resume=tmp_path, data_path=tmp_path))
    assert "out" not in plain
    assert "resume" not in plain
    assert plain["data_path"] == str(tmp_path)
    assert from_dict(plain, "test") == TrainConfig(data_path=tmp_path)


def test_a_resumed_run_brings_its_own_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(TrainConfig(model="resnet20")))
    assert resumed_config(tmp_path) == TrainConfig(model="resnet20", resume=tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no config\.yaml"):
        resumed_config(tmp_path.parent)
    with pytest.raises(CheckpointError, match="does not exist"):
        resumed_config(tmp_path / "gone")
