"""The commands that train networks and look at them."""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lowbit._errors import LowbitError
from lowbit.cli.options import FAMILIES, EvalCommand, ListCommand, PlotCommand, SummaryCommand, TrainCommand
from lowbit.cli.parsing import console, parse, print_json, value_of
from lowbit.training.config import TrainConfig, check_choice, load_config, resolve, resumed_config


def train_command(arguments: list[str]) -> None:
    """`lowbit train`."""
    config, resume = value_of("--config", arguments), value_of("--resume", arguments)
    if config and resume:
        raise LowbitError("--config and --resume exclude each other: a resumed run keeps its own configuration")
    base = load_config(Path(config)) if config else resumed_config(Path(resume)) if resume else TrainConfig()
    command = parse(TrainCommand, "train", arguments, default=TrainCommand(base))
    resolve(command.train)
    from lowbit.training.loop import train

    result = train(command.train)
    if command.json:
        print_json(asdict(result))


def eval_command(arguments: list[str]) -> None:
    """`lowbit eval`."""
    command = parse(EvalCommand, "eval", arguments)
    from lowbit.training.evaluation import evaluate

    result = evaluate(command.run, command.checkpoint, command.data_path, command.device)
    print(
        f"test accuracy {100 * result.test_accuracy:.2f} %, loss {result.loss:.4f} on {result.images:,} images "
        f"({result.checkpoint}, epoch {result.epoch}) in {result.seconds:.2f} s",
        file=sys.stderr,
    )
    if command.json:
        print_json(asdict(result))


def summary_command(arguments: list[str]) -> None:
    """`lowbit summary`."""
    command = parse(SummaryCommand, "summary", arguments)
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
    console(error=command.json).print(table.render())
    if command.json:
        print_json(table.to_dict())


def list_command(arguments: list[str]) -> None:
    """`lowbit list`."""
    if arguments and not arguments[0].startswith("-"):
        check_choice("lowbit list", arguments[0], ("all", *FAMILIES))
    command = parse(ListCommand, "list", arguments or ["all"])
    from rich.table import Table

    for family in FAMILIES if command.family == "all" else (command.family,):
        table = Table("name", "what it is", title=family, title_justify="left", box=None, pad_edge=False)
        for name, member in _members(family):
            table.add_row(name, _first_paragraph(member))
        console(error=False).print(table)


def plot_command(arguments: list[str]) -> None:
    """`lowbit plot`."""
    command = parse(PlotCommand, "plot", arguments)
    from lowbit.diagnostics.plots import plot_run

    files = [str(path) for path in plot_run(command.run, command.out)]
    if command.json:
        print_json({"run": str(command.run), "plots": files})
    else:
        print("\n".join(files))


def _first_paragraph(member: Any) -> str:
    return " ".join((inspect.getdoc(member) or "").partition("\n\n")[0].split())


def _members(family: str) -> list[tuple[str, Any]]:
    registry = getattr(importlib.import_module(f"lowbit.{family}"), FAMILIES[family])
    return list(registry.items())
