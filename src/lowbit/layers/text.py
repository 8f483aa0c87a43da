"""Tables as plain text."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table


def as_text(table: Table) -> str:
    """The table as it would look on a terminal of this one's width, without colours."""
    console = Console(file=io.StringIO(), width=Console().width, no_color=True)
    console.print(table)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined]
