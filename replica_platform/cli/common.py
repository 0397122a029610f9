"""What commands share: types of arguments, the `--json` option, and exit codes."""

import signal
import threading
from pathlib import Path

import click

from replica_platform.cli.terminal import err, out, plain, print_json, verdict
from replica_platform.core.reports import Report

PATH = click.Path(path_type=Path)
FOUND = click.Path(path_type=Path, exists=True)

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def print_sentence(report: Report, as_json: bool) -> int:
    """Print a report, as a sentence or as JSON, and return the exit code that follows from it."""
    if as_json:
        print_json(report)
    else:
        (out if report.ok else err).print(f"{verdict(report.ok)} {plain(report.sentence)}")
    return int(not report.ok)


def on_signal() -> threading.Event:
    """Return an event that SIGTERM and Ctrl-C set, so that long work ends between two steps."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    return stop
