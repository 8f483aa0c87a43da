"""The one description of a training run: typed, flat, frozen; read from YAML, from flags, or built in Python.

Nothing here imports torch, so that the command line can answer `--help` and a spelling mistake at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lowbit._errors import CheckpointError, ConfigError, nearest
from lowbit._spec import parse

CONFIG_VERSION = 1
"""Version of the YAML file's keys; a file of another version is refused."""

CONFIG_FILE = "config.yaml"
"""Name of the configuration in a run folder."""

FLOAT_BITS = 32
"""The number of bits that means "leave it in floating point"."""

DEFAULT_LR = {"sgd": 0.1, "adam": 0.003, "adamw": 0.003}
"""Learning rate per optimizer when none is given."""

_UNSAVED = ("out", "resume")


@dataclass(frozen=True)
class TrainConfig:
    """What to train, on what, how, and where to put the result. The defaults are `lowbit train` without arguments."""

    model: str = "lenet5"
    """Model: a name (see `lowbit list models`), a name with options such as mlp(hidden=128), or your own pkg.mod:fn."""
    data: str = "digits"
    """Data source (see `lowbit list data`)."""
    data_path: Path | None = None
    """Folder or file with the data, for sources that do not ship with lowbit."""
    validation: float = 0.1
    """Part of the training images held out to pick the best epoch: a fraction below 1 or a count; 0 for none."""
    augment: bool = True
    """Use the augmentation that suits the source (digits and mnist: no flips; cifar: flips and shifted crops)."""

    weights: int = 1
    """Bits of the weights: 1 to 8, or 32 for float."""
    activations: int = 2
    """Bits of the activations: 1 to 8, or 32 for float."""
    quantizer: str | None = None
    """Weight quantizer (see `lowbit list quantizers`); None takes the one that suits the bits."""
    activation_quantizer: str | None = None
    """Activation quantizer; None takes the one that suits the bits."""
    estimator: str = "clipped"
    """Gradient estimator of the weights (see `lowbit list estimators`), options in brackets: ewgs(delta=0.01)."""
    activation_estimator: str | None = None
    """Gradient estimator of the activations; None takes clipped."""
    keep_float: tuple[str, ...] = ("first", "last")
    """Layers left in float: first, last, or name patterns such as 'fc*'."""
    overrides: tuple[str, ...] = ()
    """Options of single layers by name pattern: 'layer3.*(weights=2, activations=8)' 'fc(float=True)'."""
    init: Path | None = None
    """Weights to start from, float or low-bit: a .safetensors file, a .pt state dict, or the folder of another run."""

    method: str = "plain"
    """How the weights move (see `lowbit list methods`)."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """Optimizer; sgd uses Nesterov momentum."""
    lr: float | None = None
    """Learning rate; None takes 0.1 for sgd and 0.003 for adam and adamw."""
    latent_lr: float | None = None
    """Learning rate of the latent weights behind a quantizer; None takes lr. It has no natural scale: tune it."""
    weight_decay: float = 0.0
    """Weight decay of the weights, latent ones of 2 to 8 bits included; never of biases, norm layers, scales."""
    latent_weight_decay: float | None = None
    """Weight decay of all latent weights; None takes weight_decay for 2 to 8 bits, and 0 for 1 bit: behind a sign,
    decay only raises the effective latent_lr."""
    momentum: float = 0.9
    """Momentum of sgd; beta1 of adam and adamw."""
    schedule: Literal["constant", "step", "cosine", "onecycle"] = "onecycle"
    """Learning-rate schedule, moved at every step."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Where schedule=step multiplies the rate by gamma: fractions of the run below 1, or epochs."""
    gamma: float = 0.1
    """Factor of schedule=step."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up before the schedule begins (onecycle has its own)."""
    label_smoothing: float = 0.0
    """Label smoothing, from 0 up to below 1."""
    clip_norm: float | None = None
    """Largest gradient norm; None does not clip."""
    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 64
    """Images per step, over all devices together."""
    accumulate: int = 1
    """Parts in which each device works through its images of a step, one after the other, to save memory; batch
    normalisation takes its statistics from each part."""
    eval_batch_size: int = 500
    """Images per evaluation batch on each device."""
    seed: int = 0
    """Seed of the weights, the validation split, the order of the images and their augmentation."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where there is one."""
    devices: int = 1
    """Processes to train with, one device each (on CPU: processes that share the cores)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 for mixed precision by autocast."""
    channels_last: bool = True
    """Keep images and convolution weights in channels-last order (faster)."""
    compile: bool = False
    """Compile the model with torch.compile."""
    threads: int | None = None
    """CPU threads per process; None takes torch's choice, shared out between the processes."""

    diagnostics: int = 10
    """Steps between two looks at every low-bit layer: flips, oscillation, what an estimator's metric corrects; 0 for
    none. What the training method itself finds is always written down."""
    mismatch_samples: int = 0
    """Weights per low-bit layer on which to compare the estimator's gradient with the loss's own, after each epoch.
    Each takes about as long as a step (1 bit) or two; 0 for none."""

    out: Path | None = None
    """Run folder; None takes a new one under runs/."""
    resume: Path | None = None
    """Run folder to continue from its last checkpoint; its own configuration is used, of which data_path, device,
    threads, eval_batch_size and (where the schedule allows it) epochs may be changed."""


_HINTS: dict[str, Any] = get_type_hints(TrainConfig)
FIELDS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(TrainConfig))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain values (text, numbers, lists), without `out` and `resume`."""
    plain: dict[str, Any] = {}
    for name in FIELDS:
        value = getattr(config, name)
        if name not in _UNSAVED:
            plain[name] = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return plain


def from_dict(values: Mapping[str, Any], source: str) -> TrainConfig:
    """A configuration from plain values; fields that are not given keep their defaults.

    `source` names where the values came from, for the error messages.
    Raises: ConfigError for an unknown key, a wrong type, or a version this lowbit does not read.
    """
    given = dict(values)
    version = given.pop("version", CONFIG_VERSION)
    if version != CONFIG_VERSION:
        raise ConfigError(f"{source}: version {version!r}; this lowbit reads version {CONFIG_VERSION}")
    for key in given:
        if key not in FIELDS:
            raise ConfigError(f"{source}: unknown key '{key}': {nearest(str(key), FIELDS)}known: {', '.join(FIELDS)}")
    return TrainConfig(**{key: _coerce(value, _HINTS[key], key, source) for key, value in given.items()})


def load_config(path: Path) -> TrainConfig:
    """Read a configuration from a YAML file. Raises: ConfigError when it cannot be read or holds a mistake."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file '{path}' does not exist; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file '{path}' cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration file '{path}' is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"configuration file '{path}' must hold lines of the form 'key: value'")
    return from_dict(values, str(path))


def resumed_config(run: Path) -> TrainConfig:
    """The configuration with which the run in folder `run` continues; see `TrainConfig.resume` for what may change.

    Raises: CheckpointError when `run` is not the folder of a run.
    """
    path = run / CONFIG_FILE
    if not path.is_file():
        state = "holds no config.yaml" if run.is_dir() else "does not exist"
        raise CheckpointError(f"--resume '{run}': the folder {state}; give the folder of a run, such as runs/NAME")
    return dataclasses.replace(load_config(path), resume=run)


def dump_config(config: TrainConfig) -> str:
    """The configuration as YAML, loadable with `--config`."""
    import yaml

    return str(yaml.safe_dump({"version": CONFIG_VERSION, **to_dict(config)}, sort_keys=False))


def _coerce(value: Any, hint: Any, key: str, source: str) -> Any:
    """`value` as the type `hint` asks for. Raises: ConfigError naming the key, the source and what was expected."""
    if get_origin(hint) is UnionType:
        if value is None:
            return None
        return _coerce(value, get_args(hint)[0], key, source)
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(value, "a list", key, source)
        return tuple(_coerce(item, get_args(hint)[0], key, source) for item in value)
    if get_origin(hint) is Literal:
        check_choice(f"{source}: {key}", value, get_args(hint))
        return value
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float:
        return _number(value, key, source)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    names = {str: "text", int: "a whole number", bool: "true or false", Path: "a path"}
    raise _wrong(value, names[hint], key, source)


def check_choice(label: str, value: Any, choices: Sequence[str]) -> None:
    """Raises: ConfigError, with the nearest choice, when `value` is none of them; `label` says what it is for."""
    if value not in choices:
        meant = "did you mean 'cuda'? " if value == "gpu" and "cuda" in choices else nearest(str(value), choices)
        hint = f": {meant.strip()}" if meant else ""
        raise ConfigError(f"{label}: {value!r} is not one of {', '.join(choices)}{hint}")


def check_option(option: str, text: str, hint: Any) -> None:
    """Check the text given for a command-line option whose type is `hint`, where that type is a choice or a number.

    Raises: ConfigError in the words that a configuration file would get.
    """
    if get_origin(hint) in (UnionType, Union):  # choices with None are of the second kind
        if text != "None":
            check_option(option, text, get_args(hint)[0])
    elif get_origin(hint) is tuple:
        check_option(option, text, get_args(hint)[0])
    elif get_origin(hint) is Literal:
        check_choice(option, text, get_args(hint))
    elif hint is float or hint is int:
        try:
            hint(text)
        except ValueError:
            expected = "a number" if hint is float else "a whole number"
            raise ConfigError(f"{option} is {text!r}, expected {expected}") from None


def _number(value: Any, key: str, source: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):  # YAML 1.1 reads 1e-3, without a dot, as text
        try:
            return float(value)
        except ValueError:
            pass
    raise _wrong(value, "a number", key, source)


def _wrong(value: Any, expected: str, key: str, source: str) -> ConfigError:
    return ConfigError(f"{source}: {key} is {value!r}, expected {expected}")


def parse_overrides(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Per-layer options for `lowbit.convert`: `("fc(float=True)",)` → `{"fc": "float"}`.

    Raises: ConfigError for an override without options.
    """
    parsed: dict[str, Any] = {}
    for text in overrides:
        pattern, options = parse(text)
        if not options:
            raise ConfigError(f"--overrides '{text}' names no option; write for example '{pattern}(weights=2)'")
        parsed[pattern] = "float" if options == {"float": True} else options
    return parsed


def resolve(config: TrainConfig) -> TrainConfig:
    """Check every value and fill in what depends on others, so that the saved configuration says it all.

    Raises: ConfigError that names the option, its value and what was expected.
    """
    _check(config)
    lr = DEFAULT_LR[config.optimizer] if config.lr is None else config.lr
    data_path = None if config.data_path is None else config.data_path.expanduser().absolute()
    return dataclasses.replace(
        config,
        data_path=data_path,
        lr=lr,
        latent_lr=lr if config.latent_lr is None else config.latent_lr,
    )


def _check(config: TrainConfig) -> None:
    for name, (low, high, expected) in _RANGES.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, expected {expected}")
    for name in ("weights", "activations"):
        bits = getattr(config, name)
        if not (1 <= bits <= 8 or bits == FLOAT_BITS):
            raise ConfigError(f"--{name} is {bits} bits, expected 1 to 8, or {FLOAT_BITS} for float")
    if config.validation >= 1 and config.validation != int(config.validation):
        raise ConfigError(f"--validation is {config.validation}, expected a fraction below 1 or a number of images")
    if any(milestone <= 0 for milestone in config.milestones):
        raise ConfigError(f"--milestones are {config.milestones}, expected fractions of the run or epochs, above 0")
    if config.schedule == "onecycle" and config.warmup_epochs:
        raise ConfigError("--warmup-epochs and --schedule onecycle exclude each other: onecycle warms up by itself")
    if config.warmup_epochs >= config.epochs:
        raise ConfigError(f"--warmup-epochs {config.warmup_epochs} leaves nothing of --epochs {config.epochs}")
    if config.mismatch_samples == 1:
        raise ConfigError("--mismatch-samples is 1, expected 2 or more: one number has no direction; or 0 for none")
    _check_shares(config)
    parse_overrides(config.overrides)


def _check_shares(config: TrainConfig) -> None:
    """Raises: ConfigError when the images of a step cannot be shared out equally."""
    if config.batch_size % config.devices:
        raise ConfigError(
            f"--batch-size {config.batch_size} cannot be shared equally by --devices {config.devices}; "
            f"take a multiple of {config.devices}"
        )
    if config.batch_size // config.devices % config.accumulate:
        raise ConfigError(
            f"--accumulate {config.accumulate} cannot cut the {config.batch_size // config.devices} images that each "
            f"device gets of --batch-size {config.batch_size} into equal parts; take a divisor of that number"
        )


_INFINITY = float("inf")
_TINY = 5e-324  # the smallest number above 0
_BELOW_ONE = 1.0 - 2.0**-53
_RANGES: dict[str, tuple[float, float, str]] = {
    "validation": (0.0, _INFINITY, "a fraction below 1 or a number of images"),
    "lr": (_TINY, _INFINITY, "a number above 0"),
    "latent_lr": (_TINY, _INFINITY, "a number above 0"),
    "weight_decay": (0.0, _INFINITY, "0 or more"),
    "latent_weight_decay": (0.0, _INFINITY, "0 or more"),
    "momentum": (0.0, _BELOW_ONE, "a number from 0 up to below 1"),
    "gamma": (_TINY, _INFINITY, "a number above 0"),
    "warmup_epochs": (0.0, _INFINITY, "0 or more"),
    "label_smoothing": (0.0, _BELOW_ONE, "a number from 0 up to below 1"),
    "clip_norm": (_TINY, _INFINITY, "a number above 0"),
    "epochs": (1, _INFINITY, "1 or more"),
    "batch_size": (1, _INFINITY, "1 or more"),
    "accumulate": (1, _INFINITY, "1 or more"),
    "eval_batch_size": (1, _INFINITY, "1 or more"),
    "diagnostics": (0, _INFINITY, "a number of steps, or 0 for none"),
    "mismatch_samples": (0, _INFINITY, "a number of weights, or 0 for none"),
    "seed": (0, 2**63 - 1, "0 or more"),
    "devices": (1, _INFINITY, "1 or more"),
    "threads": (1, _INFINITY, "1 or more"),
}
