"""The command `lowbit`: it parses, calls and prints; everything else is in the library.

Exit status: 0, or 1 for a file that `verify` finds different from its run, 2 for a mistake in what was asked or an
export that failed its proof, 3 for a run that diverged, 130 when interrupted.

A new command is a dataclass of its options in `options.py` or `deploy_options.py`, a function in `networks.py`,
`deployment.py` or `experiments.py`, and a line in `run.py`.
"""

from lowbit.cli.options import FAMILIES, CoarseCommand, FlowCommand
from lowbit.cli.run import main

__all__ = ["FAMILIES", "CoarseCommand", "FlowCommand", "main"]
