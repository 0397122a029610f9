"""The child's side: run the task of the command line, write its messages to standard output.

Not for people; `child.process` starts it.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from replica_platform.backup.child.check import check_file
from replica_platform.backup.child.clone import clone
from replica_platform.backup.child.messages import (
    Advance,
    Answer,
    Copied,
    Failure,
    Message,
    encode,
)
from replica_platform.backup.child.queries import ask_queries
from replica_platform.backup.child.restored_copy import make_restored_copy
from replica_platform.backup.child.snapshot import take_snapshot
from replica_platform.backup.errors import translate_errors
from replica_platform.core.errors import PlatformError
from replica_platform.core.reports import Unit

TASKS: dict[str, Callable[..., Answer]] = {
    "copy": partial(take_snapshot, when_copied=lambda: _write(Copied())),
    "check": check_file,
    "restore": make_restored_copy,
    "query": ask_queries,
    "clone": clone,
}
PATHS = ("source", "file", "backup", "copy", "previous")


def main() -> None:
    """Run one task; write its progress, then its answer or its error."""
    os.umask(0o077)  # an unfinished copy is private; the final mode comes with the name
    threading.Thread(target=_end_with_caller, daemon=True).start()
    task, given = sys.argv[1], json.loads(sys.argv[2])
    arguments = {name: Path(v) if name in PATHS else v for name, v in given.items()}
    read = next(arguments[name] for name in PATHS if name in arguments)
    try:
        with translate_errors(task, read, arguments.get("copy")):
            _write(TASKS[task](**arguments, progress=_write_progress))
    except PlatformError as error:
        _write(Failure(type(error).__name__, str(error)))


def _end_with_caller() -> None:
    # Not through sys.stdin: its lock, held while waiting, aborts the interpreter's own end.
    while os.read(0, 4096):
        pass
    os._exit(1)


def _write_progress(done: int, total: int, unit: Unit) -> None:
    _write(Advance(done, total, unit))


def _write(message: Message) -> None:
    sys.stdout.write(encode(message) + "\n")
    sys.stdout.flush()


main()
