"""The load that a sync puts on its source: how many sessions, and how much of the time they work.

Ranges are read one after the other; a session pauses after each, until it has worked for no more
than its fraction of the time.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class SourceLoad:
    """The limits of one sync, and what it has used.

    Attributes:
        most_connections: How many sessions may read at the same time; None sets no limit.
        fraction: The largest fraction of the time that each of them may work.
        connections: How many sessions have read at the same time, at most.
        busy_s: Seconds that they have worked on ranges, added up.
    """

    def __init__(self, most_connections: int | None = None, fraction: float = 1.0) -> None:
        self.most_connections = most_connections
        self.fraction = fraction
        self.connections = 1
        self.busy_s = 0.0
        self._lock = threading.Lock()

    def limited(self, connections: int) -> int:
        """Return how many of some sessions may be used; at least one."""
        if self.most_connections is not None:
            connections = min(connections, self.most_connections)
        return max(1, connections)

    def using(self, connections: int) -> None:
        """Take note of the sessions that read at the same time."""
        self.connections = max(self.connections, connections)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Take note of the time that one session works, then pause as long as the limit says."""
        began = time.monotonic()
        yield
        busy_s = time.monotonic() - began
        with self._lock:
            self.busy_s += busy_s
        pause_s = busy_s * (1 / self.fraction - 1)
        if pause_s > 0:
            time.sleep(pause_s)
