"""Lower priority and fewer cores for a publication, so that readers' queries stay fast.

A low priority alone is not enough: on two cores, two counting threads of the lowest priority
tripled the slowest hundredth of a reader's queries; one such thread added a third. Both measures
are optional: where the system forbids them, the publication continues without.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Below the processes that answer queries on the same machine.
NICENESS = 15


def lower_priority() -> None:
    """Lower the priority of this thread."""
    if sys.platform == "linux":  # elsewhere a priority belongs to a whole process
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


@contextmanager
def half_the_cores(*children: int) -> Iterator[None]:
    """Restrict this process and those child processes to half of the cores inside the `with`.

    Threads and processes that start inside inherit the restriction.
    """
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    half = sorted(before)[len(before) // 2 :]
    for process in (0, *children):
        with suppress(OSError):
            os.sched_setaffinity(process, half)
    try:
        yield
    finally:
        for process in (0, *children):
            with suppress(OSError):
                os.sched_setaffinity(process, before)
