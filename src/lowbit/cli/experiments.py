"""The commands that show the papers' mathematics act."""

from __future__ import annotations

from dataclasses import asdict

from lowbit._errors import ConfigError
from lowbit.cli.options import CheckCommand, CoarseCommand, FeaturesCommand, FlowCommand, RepelCommand
from lowbit.cli.parsing import parse, print_json


def flow_command(arguments: list[str]) -> None:
    """`lowbit flow`."""
    command = parse(FlowCommand, "flow", arguments)
    from lowbit.diagnostics.flow import FlowExperiment, run_flow

    options = {name: value for name, value in vars(command).items() if name not in ("out", "json")}
    report = run_flow(FlowExperiment(**options), command.out)
    if command.json:
        print_json(asdict(report))
    else:
        print(report.render())


def coarse_command(arguments: list[str]) -> None:
    """`lowbit coarse`."""
    command = parse(CoarseCommand, "coarse", arguments)
    from lowbit.diagnostics.coarse import CoarseExperiment, run_coarse

    options = {name: value for name, value in vars(command).items() if name not in ("plot", "out", "json")}
    report = run_coarse(CoarseExperiment(**options), command.plot, command.out)
    if command.json:
        print_json(asdict(report))
    else:
        print(report.render())


def check_command(arguments: list[str]) -> None:
    """`lowbit check`."""
    # A range that starts below 0 would look like an option.
    given = list(arguments)
    while "--range" in given[:-1]:
        at = given.index("--range")
        given[at : at + 2] = [f"--range={given[at + 1]}"]
    command = parse(CheckCommand, "check", given)
    if command.out is not None and not command.plot:
        raise ConfigError(f"--out '{command.out}' is for the picture; leave out --no-plot")
    from lowbit.diagnostics.safety import check, check_to_folder, parse_range

    bounds = None if command.range is None else parse_range(command.range)
    plain = (command.estimator, command.quantizer, bounds, command.seeds)
    report, folder = check_to_folder(*plain, command.out) if command.plot else (check(*plain), None)
    if command.json:
        print_json({**report.to_dict(), "run": None if folder is None else str(folder)})
        return
    print(report.render())
    if folder is not None:
        print(f"written: {folder / 'check.png'}")


def features_command(arguments: list[str]) -> None:
    """`lowbit features`."""
    command = parse(FeaturesCommand, "features", arguments)
    from lowbit.training.look import features_of_run

    options = {name: value for name, value in vars(command).items() if name != "json"}
    result = features_of_run(**options)
    if command.json:
        print_json(asdict(result))
    else:
        print(result.render())


def repel_command(arguments: list[str]) -> None:
    """`lowbit repel`."""
    command = parse(RepelCommand, "repel", arguments)
    from lowbit.diagnostics.repulsion import Descent
    from lowbit.training.look import repel_run

    walk = ("steps", "lr", "momentum", "seed")
    options = {name: value for name, value in vars(command).items() if name not in (*walk, "json")}
    result = repel_run(descent=Descent(**{name: getattr(command, name) for name in walk}), **options)
    if command.json:
        print_json(asdict(result))
    else:
        print(result.render())
