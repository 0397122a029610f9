"""`watch`: the agent of a node, which drains as records come and at an interval.

Looking when to drain belongs here; draining itself does not.
"""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from replica_platform.outbox.delivery.drain import drain
from replica_platform.outbox.reports import DrainReport
from replica_platform.outbox.slots import outbox_files

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
    """Drain `paths` until `stop` is set; returns how many drains were run.

    A drain follows at most `look_s` after a file changed, and every `interval_s` whatever
    happens. `on_report` is told what each did; `options` go to `drain`.
    """
    runs = 0
    seen: dict[str, tuple[int, int]] = {}
    due = 0.0
    while not stop.is_set():
        now_there = _stamps(paths)
        if now_there != seen or time.monotonic() >= due:
            report = drain(paths, target, stop=stop, **options)
            runs += 1
            due = time.monotonic() + interval_s
            seen = now_there
            if on_report is not None:
                on_report(report)
        stop.wait(look_s)
    return runs


def _stamps(paths: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """When each file's log last changed; `stat` alone, so that no lock of SQLite is touched."""
    stamps = {}
    for path in outbox_files(paths):
        for part in (path, path.with_name(path.name + "-wal")):
            try:
                found = part.stat()
            except FileNotFoundError:
                continue
            stamps[str(part)] = (found.st_mtime_ns, found.st_size)
    return stamps
