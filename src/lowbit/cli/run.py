"""The commands by name, and the way from the command line to one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from lowbit import __version__
from lowbit._errors import DivergedError, LowbitError, UnknownNameError, nearest
from lowbit.cli.deployment import bench_command, export_command, predict_command, verify_command
from lowbit.cli.experiments import check_command, coarse_command, features_command, flow_command, repel_command
from lowbit.cli.networks import eval_command, list_command, plot_command, summary_command, train_command

COMMANDS: dict[str, tuple[Callable[[list[str]], int | None], str]] = {
    "train": (
        train_command,
        "train a network; without options, LeNet-5 with 1-bit weights, 2-bit activations, on 8 x 8 digits",
    ),
    "eval": (eval_command, "test accuracy of a finished run: lowbit eval RUN"),
    "summary": (summary_command, "bits, parameters, operations and bytes of every layer of a model"),
    "list": (
        list_command,
        "what there is to choose from: lowbit list [estimators|quantizers|models|data|methods]",
    ),
    "export": (
        export_command,
        "a run's model as a file for kernels, ONNX or FPGAs, with its proof: lowbit export RUN --to FILE",
    ),
    "verify": (verify_command, "whether a file computes what the trained model computes: lowbit verify FILE RUN"),
    "predict": (predict_command, "accuracy and speed of an exported file: lowbit predict FILE"),
    "bench": (bench_command, "an exported file against ONNX Runtime and PyTorch: lowbit bench FILE"),
    "plot": (plot_command, "pictures of a run's curves and of what its layers did: lowbit plot RUN"),
    "flow": (flow_command, "how fast a perturbed flat metric becomes flat under the Ricci-DeTurck flow"),
    "coarse": (coarse_command, "whether coarse gradient descent finds a perfect classifier, with which estimator"),
    "check": (check_command, "whether an estimator is safe for activations: lowbit check ESTIMATOR --quantizer Q"),
    "features": (features_command, "how the last hidden layer of a run lays out the classes: lowbit features RUN"),
    "repel": (repel_command, "whether other estimators drive descent away from a run's minimum: lowbit repel RUN"),
}
"""What each command does with its arguments (its exit status, None for 0), and its line in the help."""


def help_text() -> str:
    """What `lowbit --help` prints."""
    commands = "\n".join(f"  {name:<10} {line}" for name, (_, line) in COMMANDS.items())
    return f"""\
usage: lowbit COMMAND [OPTIONS]

Train neural networks whose weights and activations are a few bits wide.

commands:
{commands}

options:
  -h, --help     this text; lowbit COMMAND --help describes a command
  --version      version of lowbit
"""


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
        print(help_text(), end="")
        return 0 if given else 2
    if given[0] == "--version":
        print(f"lowbit {__version__}")
        return 0
    if given[0] not in COMMANDS:
        raise UnknownNameError(
            f"unknown command '{given[0]}': {nearest(given[0], COMMANDS)}known: {', '.join(COMMANDS)}"
        )
    return COMMANDS[given[0]][0](given[1:]) or 0
