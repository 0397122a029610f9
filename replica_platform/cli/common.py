"""What subcommands share: their types of arguments, and how a result becomes an exit code."""

import signal
import threading
from pathlib import Path
from typing import Any

import click

from replica_platform.cli.terminal import err, out, plain, print_json, verdict

PATH = click.Path(path_type=Path)
FOUND = click.Path(path_type=Path, exists=True)

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def print_sentence(result: Any, as_json: bool) -> int:
    """Print a result that knows whether it is well, and its sentence; the exit code follows."""
    if as_json:
        print_json(result)
    else:
        (out if result.ok else err).print(f"{verdict(result.ok)} {plain(result.sentence)}")
    return int(not result.ok)


def on_signal() -> threading.Event:
    """An event that SIGTERM and Ctrl-C set, so that long work ends between two steps."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    return stop
