"""What the command line shows: tables and bars for people, JSON for programs.

How results look belongs here; which results there are does not.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from replica_platform.core.reports import Progress as ProgressCallback
from replica_platform.core.reports import Unit, format_age, format_bytes
from replica_platform.core.reports import plain as plain_values

# A pipe or a file has no width to fold at.
WIDTH = None if sys.stdout.isatty() else 160

out = Console(highlight=False, soft_wrap=True, width=WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)

plain = escape  # text as it is: brackets in it are no markup

# Shorter work shows no bar: it would only flicker.
BAR_AFTER_S = 2.0


def print_json(result: Any) -> None:
    """A dataclass, or a list of them, as one JSON document on stdout."""
    json.dump(plain_values(result), sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table with numbers to the right; markup in cells is shown, not obeyed."""
    rows = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, name in enumerate(head):
        numeric = any(isinstance(row[at], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(plain(_cell(value)) for value in row))
    out.print(table)


def complain(sentence: str) -> int:
    """An error on stderr, as one sentence; returns the exit code for it."""
    err.print(f"[bold red]error:[/] {plain(sentence)}")
    return 1


def verdict(ok: bool) -> str:
    """The mark that says whether all is well, in colour where there is colour."""
    return "[green]ok[/]" if ok else "[bold red]RED[/]"


def readable(name: str, value: Any) -> str:
    """A figure and its name, in words: a name ends in `_bytes` or `_s` where it has a unit."""
    for suffix, show in (("_bytes", format_bytes), ("_age_s", format_age)):
        if name.endswith(suffix):
            text = "none" if value is None else show(value)
            return f"{name.removesuffix('_s').replace('_', ' ')} {text}".replace(" bytes", "")
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "none"
    return f"{name.replace('_', ' ')} {_cell(value)}"


@contextmanager
def bar(what: str) -> Iterator[ProgressCallback]:
    """Yield `progress(done, total)`, which draws a bar on a terminal after `BAR_AFTER_S`."""
    began = time.monotonic()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )
    task = progress.add_task(what, total=None)

    def advance(done: int, total: int, unit: Unit = "steps") -> None:
        progress.update(task, completed=done, total=total)
        late = time.monotonic() - began > BAR_AFTER_S
        if late and err.is_terminal and not progress.live.is_started:
            progress.start()

    try:
        yield advance
    finally:
        if progress.live.is_started:
            progress.stop()


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return "–" if value is None else str(value)
