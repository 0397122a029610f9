"""The child: one task from `work`, its progress and its answer as JSON lines.

Not for people; `child.in_child` starts it.
"""

import json
import os
import sys
import threading
from typing import Any

from replica_platform.backup.child.tasks import TASKS
from replica_platform.backup.errors import BY_NAME, Unreadable
from replica_platform.backup.failures import explain_os, explain_sqlite
from replica_platform.core.errors import PlatformError
from replica_platform.core.sqlite import sqlite3


def main() -> None:
    """Do the task named on the command line; say how it went on standard output."""
    os.umask(0o077)  # a half-made copy is nobody else's; the final mode comes with the name
    threading.Thread(target=_end_with_parent, daemon=True).start()
    task, arguments = sys.argv[1], json.loads(sys.argv[2])
    try:
        _say({"result": TASKS[task](**arguments, progress=lambda *at: _say({"progress": at}))})
    except (PlatformError, OSError, sqlite3.Error) as error:
        if isinstance(error, OSError):
            error = explain_os(error, task)
        elif isinstance(error, sqlite3.Error):
            read = next(
                arguments[name] for name in ("source", "file", "backup") if name in arguments
            )
            error = explain_sqlite(error, task, read, arguments.get("to"))
        _say({"error": _kind(error), "text": str(error)})


def _end_with_parent() -> None:
    # Not through sys.stdin: its lock, held while waiting, aborts the interpreter's own end.
    while os.read(0, 4096):
        pass
    os._exit(1)


def _kind(error: PlatformError) -> str:
    name = type(error).__name__
    return name if name in BY_NAME else Unreadable.__name__


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


main()
