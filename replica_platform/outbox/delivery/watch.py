"""`watch`: the agent of a node, which drains as records come and at an interval.

When to drain belongs here; draining does not (see `drain`).
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from replica_platform.outbox.delivery.drain import DEADLINE_S, drain
from replica_platform.outbox.delivery.target import Target
from replica_platform.outbox.file import log_path
from replica_platform.outbox.reports import DrainReport
from replica_platform.outbox.slots import database_files

LOOK_S = 0.2
INTERVAL_S = 30.0


def watch(
    paths: Sequence[Path],
    target: str,
    *,
    stop: threading.Event,
    interval_s: float = INTERVAL_S,
    look_s: float = LOOK_S,
    on_report: Callable[[DrainReport], None] | None = None,
    **options: Any,
) -> int:
    """Drain `paths` until `stop` is set.

    A drain starts at most `look_s` after a file changed, when the breaker of a file that failed
    lets it try again, and every `interval_s` in any case. All use one connection, opened again if
    the server ends it.

    Args:
        paths: Outbox files, or folders of `*.db`.
        target: The connection string of the Postgres to deliver to.
        stop: Ends the loop, and a running drain after its current batch.
        interval_s: The longest time between two drains, in seconds.
        look_s: The time between two looks at the files, in seconds.
        on_report: Called with the report of each drain.
        options: Keyword arguments of `drain`.

    Returns:
        How many drains ran.

    Raises:
        BadMapping: The mappings are incomplete or contradictory.
    """
    drains = 0
    seen: dict[str, tuple[int, int]] = {}
    due = 0.0
    with closing(Target(target, options.get("deadline_s", DEADLINE_S))) as connections:
        while not stop.is_set():
            found = _change_stamps(paths)
            if found != seen or time.monotonic() >= due:
                report = drain(paths, connections, stop=stop, **options)
                drains += 1
                retries = [file.retry_s for file in report.files if file.retry_s is not None]
                due = time.monotonic() + min([interval_s, *retries])
                seen = found
                if on_report is not None:
                    on_report(report)
            stop.wait(look_s)
    return drains


def _change_stamps(paths: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Return when each file and its log last changed, by `stat`, which drops no lock of SQLite."""
    stamps = {}
    for path in database_files(paths):
        for part in (path, log_path(path)):
            try:
                found = part.stat()
            except FileNotFoundError:
                continue
            stamps[str(part)] = (found.st_mtime_ns, found.st_size)
    return stamps
