"""Stepping back while readers query: a lower priority, and on few cores a share of them.

A priority alone does not do it. On two cores, two threads of the lowest priority that only count
tripled the slowest hundredth of a reader's queries; one of them added a third. Both are a courtesy:
where the system forbids them, publication goes on without.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Below whoever answers queries on the same machine: the readers' slowest queries are what counts.
NICENESS = 15


def step_back() -> None:
    """Let others run before this thread."""
    if sys.platform == "linux":  # elsewhere priorities belong to processes
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


@contextmanager
def half_the_cores(*children: int) -> Iterator[None]:
    """Leave half of the cores to readers, with those child processes, until the `with` ends.

    What is started inside, threads and processes, inherits it.
    """
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    ours = sorted(before)[len(before) // 2 :]
    for process in (0, *children):
        with suppress(OSError):
            os.sched_setaffinity(process, ours)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, before)
