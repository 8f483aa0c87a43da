"""The command `lowbit`: it parses, calls and prints; everything else is in the library.

Exit status: 0, or 2 for a mistake in what was asked, 3 for a run that diverged, 130 when interrupted.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from lowbit import __version__
from lowbit._errors import DivergedError, LowbitError, UnknownNameError, nearest
from lowbit.training.config import TrainConfig, check_choice, check_option, load_config, resolve, resumed_config

T = TypeVar("T")

HELP = """\
usage: lowbit COMMAND [OPTIONS]

Train neural networks whose weights and activations are a few bits wide.

commands:
  train      train a network; without options, LeNet-5 with 1-bit weights, 2-bit activations, on 8 x 8 digits
  eval       test accuracy of a finished run: lowbit eval RUN
  summary    bits, parameters, operations and bytes of every layer of a model
  list       what there is to choose from: lowbit list [estimators|quantizers|models|data|methods]
  plot       pictures of a run's curves and of what its layers did: lowbit plot RUN
  flow       how fast a perturbed flat metric becomes flat under the Ricci-DeTurck flow

options:
  -h, --help     this text; lowbit COMMAND --help describes a command
  --version      version of lowbit
"""


@dataclass(frozen=True)
class TrainCommand:
    """Train a low-bit network; without options, LeNet-5 with 1-bit weights and 2-bit activations on digits."""

    train: TrainConfig
    """The run."""
    config: Path | None = None
    """YAML file with any of the options below, dashes as underscores; a flag given here wins over the file."""
    json: bool = False
    """Print one JSON object with the result as the last line of standard output."""


@dataclass(frozen=True)
class EvalCommand:
    """Test accuracy of a finished run."""

    run: Path
    """Run folder."""
    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint: that of the best epoch or of the last one."""
    data_path: Path | None = None
    """Where the data is now, if it has moved since the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print one JSON object with the result as the last line of standard output."""


@dataclass(frozen=True)
class SummaryCommand:
    """Bits, parameters, multiply-accumulates and bytes of every layer of a low-bit model."""

    model: str = TrainConfig.model
    """Model (see `lowbit list models`), or your own pkg.mod:fn."""
    data: str = TrainConfig.data
    """Data source, for the shape of its images and its number of classes."""
    data_path: Path | None = None
    """Folder or file with the data."""
    input: tuple[int, int, int] | None = None
    """Channels, height and width of an image, instead of taking them from the data."""
    classes: int = 10
    """Number of classes, with --input."""
    weights: int = TrainConfig.weights
    """Bits of the weights: 1 to 8, or 32 for float."""
    activations: int = TrainConfig.activations
    """Bits of the activations: 1 to 8, or 32 for float."""
    quantizer: str | None = None
    """Weight quantizer."""
    activation_quantizer: str | None = None
    """Activation quantizer."""
    keep_float: tuple[str, ...] = TrainConfig.keep_float
    """Layers left in float: first, last, or name patterns."""
    overrides: tuple[str, ...] = ()
    """Options of single layers: 'layer3.*(weights=2)' 'fc(float=True)'."""
    json: bool = False
    """Print one JSON object with the table as the last line of standard output."""


FAMILIES = {
    "estimators": "ESTIMATORS",
    "quantizers": "QUANTIZERS",
    "models": "MODELS",
    "data": "DATA",
    "methods": "METHODS",
}
"""The packages with something to choose from, and the name of each one's registry."""


@dataclass(frozen=True)
class ListCommand:
    """What there is to choose from, with a line about each."""

    family: Literal["all", "estimators", "quantizers", "models", "data", "methods"]
    """Which family; all of them when left out."""


@dataclass(frozen=True)
class PlotCommand:
    """Pictures of a run: its curves, and what was measured in its layers."""

    run: Path
    """Run folder."""
    out: Path | None = None
    """Folder for the pictures; None takes plots in the run folder."""
    json: bool = False
    """Print one JSON object with the files written as the last line of standard output."""


@dataclass(frozen=True)
class FlowCommand:
    """Perturb a flat metric at random, follow it along its Ricci flow, and fit how fast it becomes flat.

    The rate is compared with that of the linearised flow. Two pictures and the numbers are written to a folder.
    """

    dim: int = 2
    """Dimension of the torus: 2 or 3."""
    perturbation: float = 0.05
    """Size of the perturbation, as a share of the flat metric."""
    grid: int | None = None
    """Points along each axis; None takes 32 in two dimensions, 16 in three."""
    time: float | None = None
    """Flow time at which to end; None takes 6 divided by the linearised rate."""
    seed: int = 0
    """Seed of the perturbation."""
    equation: Literal["deturck", "ricci"] = "deturck"
    """The flow: deturck, where the metric's deviation decays, or ricci, where only its curvature does."""
    period: float = 2 * math.pi
    """Length of each side of the torus."""
    out: Path | None = None
    """Folder to write to; None makes a new one under runs/."""
    json: bool = False
    """Print one JSON object with the result as the last line of standard output."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: what follows the program's name; `sys.argv[1:]` by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Read when torch's thread library loads: threads that spin while they wait slow every step down as soon as anything
    # else runs on the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return _dispatch(given)
    except LowbitError as error:
        if os.environ.get("RANK", "0") == "0":  # under torchrun every process meets the same error
            print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, DivergedError) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _dispatch(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if given else 2
    if given[0] == "--version":
        print(f"lowbit {__version__}")
        return 0
    if given[0] not in COMMANDS:
        raise UnknownNameError(
            f"unknown command '{given[0]}': {nearest(given[0], COMMANDS)}known: {', '.join(COMMANDS)}"
        )
    COMMANDS[given[0]](given[1:])
    return 0


def _parse(command: type[T], name: str, arguments: list[str], default: Any = None) -> T:
    """Read the options of one command; a mistake ends the process with status 2 and a message that names the option."""
    _check_values(command, arguments)
    import tyro  # a tenth of a second, which `lowbit --help` need not wait for

    settings = (tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs)
    given = {} if default is None else {"default": default}
    return cast(T, tyro.cli(command, prog=f"lowbit {name}", args=arguments, config=settings, **given))


def _check_values(command: type, arguments: list[str]) -> None:
    """Check choices and numbers before tyro does, which words its errors for those who know Python's types.

    Raises: ConfigError that names the option.
    """
    hints = get_type_hints(command)
    if command is TrainCommand:
        hints |= get_type_hints(TrainConfig)
    option, hint = "", None
    for argument in arguments:
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
            hint = hints.get(option[2:].replace("-", "_"))
            if equals:
                check_option(option, value, hint)
                hint = None
        else:
            check_option(option, argument, hint)
            if tuple not in (get_origin(hint), *map(get_origin, get_args(hint))):  # an option with a single value
                hint = None


def _value_of(option: str, arguments: list[str]) -> str | None:
    """The value given to `option`, which has to be known before the other options can be read."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option and position + 1 < len(arguments):
            return arguments[position + 1]
    return None


def _train(arguments: list[str]) -> None:
    config, resume = _value_of("--config", arguments), _value_of("--resume", arguments)
    if config and resume:
        raise LowbitError("--config and --resume exclude each other: a resumed run keeps its own configuration")
    base = load_config(Path(config)) if config else resumed_config(Path(resume)) if resume else TrainConfig()
    command = _parse(TrainCommand, "train", arguments, default=TrainCommand(base))
    resolve(command.train)
    from lowbit.training.loop import train

    result = train(command.train)
    if command.json:
        _print_json(asdict(result))


def _eval(arguments: list[str]) -> None:
    command = _parse(EvalCommand, "eval", arguments)
    from lowbit.training.evaluation import evaluate

    result = evaluate(command.run, command.checkpoint, command.data_path, command.device)
    print(
        f"test accuracy {100 * result.test_accuracy:.2f} %, loss {result.loss:.4f} on {result.images:,} images "
        f"({result.checkpoint}, epoch {result.epoch}) in {result.seconds:.2f} s",
        file=sys.stderr,
    )
    if command.json:
        _print_json(asdict(result))


def _summary(arguments: list[str]) -> None:
    command = _parse(SummaryCommand, "summary", arguments)
    from lowbit.layers import summary
    from lowbit.models import build_model
    from lowbit.training.task import build_float_model, explained, load_task, plan_low_bit

    options = {name: value for name, value in vars(command).items() if name not in ("input", "classes", "json")}
    config = resolve(replace(TrainConfig(), **options, validation=0.0))
    if command.input is None:
        data = load_task(config).data
        channels, size = data.in_channels, data.image_size
        model = build_float_model(config, data)
    else:
        channels, size = command.input[0], command.input[1:]
        model = build_model(config.model, command.classes, channels, size, config.seed)
    with explained(config):
        table = summary(plan_low_bit(model, config).apply(), (channels, *size), show=False)
    _console(error=command.json).print(table.render())
    if command.json:
        _print_json(table.to_dict())


def _list(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        check_choice("lowbit list", arguments[0], ("all", *FAMILIES))
    command = _parse(ListCommand, "list", arguments or ["all"])
    from rich.table import Table

    for family in FAMILIES if command.family == "all" else (command.family,):
        table = Table("name", "what it is", title=family, title_justify="left", box=None, pad_edge=False)
        for name, member in _members(family):
            table.add_row(name, _first_paragraph(member))
        _console(error=False).print(table)


def _plot(arguments: list[str]) -> None:
    command = _parse(PlotCommand, "plot", arguments)
    from lowbit.diagnostics.plots import plot_run

    files = [str(path) for path in plot_run(command.run, command.out)]
    if command.json:
        _print_json({"run": str(command.run), "plots": files})
    else:
        print("\n".join(files))


def _flow(arguments: list[str]) -> None:
    command = _parse(FlowCommand, "flow", arguments)
    from lowbit.diagnostics.flow import FlowExperiment, run_flow

    options = {name: value for name, value in vars(command).items() if name not in ("out", "json")}
    report = run_flow(FlowExperiment(**options), command.out)
    if command.json:
        _print_json(asdict(report))
    else:
        print(report.render())


def _first_paragraph(member: Any) -> str:
    return " ".join((inspect.getdoc(member) or "").partition("\n\n")[0].split())


def _members(family: str) -> list[tuple[str, Any]]:
    registry = getattr(importlib.import_module(f"lowbit.{family}"), FAMILIES[family])
    return list(registry.items())


def _console(*, error: bool) -> Any:
    from rich.console import Console

    return Console(stderr=error, highlight=False)


def _print_json(values: dict[str, Any]) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(values), flush=True)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "eval": _eval,
    "summary": _summary,
    "list": _list,
    "plot": _plot,
    "flow": _flow,
}
