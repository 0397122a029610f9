"""How the command prints: tables and progress bars for people, JSON for programs.

How results look belongs here; which results a command has does not.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from replica_platform.core.reports import Progress as ProgressCallback
from replica_platform.core.reports import Unit, format_age, format_bytes
from replica_platform.core.reports import plain as plain_values

if TYPE_CHECKING:
    from rich.progress import Progress

# Pipes and files have no width; lines are not folded there.
WIDTH = None if sys.stdout.isatty() else 160

out = Console(highlight=False, soft_wrap=True, width=WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)

plain = escape  # prints text as it is, brackets included

# Shorter work shows no bar: it would only flicker.
BAR_AFTER_S = 2.0
SHOWN_VALUES = 10


def print_json(result: Any) -> None:
    """Print a report, or a list or dict of reports, as one JSON document on stdout."""
    json.dump(plain_values(result), sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def print_json_line(result: Any) -> None:
    """Print a report as one line of JSON, at once, for a program that reads line by line."""
    line = json.dumps(plain_values(result), ensure_ascii=False, default=str)
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table with numbers aligned to the right; markup in cells has no effect."""
    from rich.table import Table

    rows = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, name in enumerate(head):
        numeric = any(isinstance(row[at], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(plain(_cell(value)) for value in row))
    out.print(table)


def complain(sentence: str) -> int:
    """Print an error on stderr as one sentence and return the exit code for it."""
    err.print(f"[bold red]error:[/] {plain(sentence)}")
    return 1


def verdict(ok: bool, *, idle: bool = False, padded: bool = False) -> str:
    """Return `ok`, `RED` or `idle`, in colour on a terminal; `padded` makes them equally wide."""
    if idle:
        return "[yellow]idle[/]"
    width = 4 if padded else 0
    return f"[green]ok[/]{' ' * (width - 2)}" if ok else f"[bold red]RED[/]{' ' * (width - 3)}"


def figures(facts: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Return figures as one line of text; a figure without a value is left out.

    Args:
        facts: Values by name; a name ends in `_bytes` for a size and in `_age_s` for an age.
        labels: Other words for a name than the name itself.
    """
    known = {name: value for name, value in facts.items() if value not in (None, [])}
    return ", ".join(
        f"{labels.get(name) or _words(name)} {_figure(name, value)}"
        for name, value in known.items()
    )


@contextmanager
def live(console: Console) -> Iterator[Callable[[Sequence[str]], None]]:
    """Yield a function that shows lines of markup in the place of those before.

    Where there is no terminal, the lines follow one another.
    """
    if not console.is_terminal:
        yield lambda lines: console.print("\n".join(lines))
        return
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as shown:
        yield lambda lines: shown.update(Text.from_markup("\n".join(lines)), refresh=True)


@contextmanager
def bar(title: str) -> Iterator[ProgressCallback]:
    """Yield a progress callback that draws a bar on a terminal after `BAR_AFTER_S`."""
    began = time.monotonic()
    progress: Progress | None = None

    def advance(done: int, total: int, unit: Unit = "steps") -> None:
        nonlocal progress
        if progress is None and err.is_terminal and time.monotonic() - began > BAR_AFTER_S:
            progress = _bar(title, began)
            progress.start()
        if progress is not None:
            progress.update(
                progress.task_ids[0],
                completed=done,
                total=total,
                description=_described(title, done, total, unit),
            )

    try:
        yield advance
    finally:
        if progress is not None:
            progress.stop()


def _described(title: str, done: int, total: int, unit: Unit) -> str:
    if unit == "bytes":
        return f"{title}: {format_bytes(done)} of {format_bytes(total)}"
    return f"{title}: {done:,} of {total:,} tables" if unit == "tables" else title


def _bar(title: str, began: float) -> "Progress":
    # Imported late, like the tables: most commands end before they need one.
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )
    task = progress.add_task(title, total=None)
    progress.tasks[task].start_time = began
    return progress


def _words(name: str) -> str:
    return name.removesuffix("_bytes").removesuffix("_s").replace("_", " ")


def _figure(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return format_bytes(value)
    if name.endswith("_age_s"):
        return format_age(value)
    return _listed(value) if isinstance(value, list) else _cell(value)


def _listed(values: list[Any]) -> str:
    """Return values as a line of text; of many only the first ones, since `--json` has all."""
    shown = ", ".join(map(str, values[:SHOWN_VALUES]))
    left = len(values) - SHOWN_VALUES
    return f"{shown} and {left:,} more" if left > 1 else ", ".join(map(str, values))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return "–" if value is None else str(value)
