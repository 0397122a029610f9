"""How far a group is: the bytes of all its tables as one sum, which never goes back."""

import threading

from replica_platform.core.reports import Progress


class GroupProgress:
    """Adds up what several threads copy of several tables, and tells the sum."""

    def __init__(self, tell: Progress | None) -> None:
        self._tell = tell
        self._expected: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._all_expected = self._all_done = 0
        self._lock = threading.Lock()

    def expect(self, table: str, size: int) -> None:
        """Expect the bytes of a table; what comes beyond them adds to what is expected."""
        with self._lock:
            self._set(table, max(size, self._done.get(table, 0)))

    def add(self, table: str, size: int) -> None:
        """Add bytes that were copied."""
        if self._tell is None:
            return
        with self._lock:
            done = self._done[table] = self._done.get(table, 0) + size
            self._all_done += size
            self._set(table, max(done, self._expected.get(table, 0)))
            told = self._all_done, self._all_expected
        self._tell(*told, "bytes")

    def end(self, table: str) -> None:
        """Expect no more of a table: the bytes that are sent may be fewer than its heap has."""
        with self._lock:
            self._set(table, self._done.get(table, 0))

    def _set(self, table: str, expected: int) -> None:
        self._all_expected += expected - self._expected.get(table, 0)
        self._expected[table] = expected
