"""A sync in a thread, whose reports a step takes while the sync goes on.

Dagster stores an event in some 10 ms. A sync that waited for that would hold its snapshot of the
source the longer.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator

import dagster as dg

from replica_platform.core.reports import Unit, format_bytes
from replica_platform.xmin import GroupReport, SyncReport

LOG_EVERY_S = 10.0
# A statement that runs is waited for; a sync that is left behind ends with its next report.
END_TIMEOUT_S = 10.0


class _Ended(BaseException):
    """The step has ended before its sync."""


class Handover:
    """What a sync is given: where its reports and its progress go.

    Attributes:
        stop: Set when the step has ended.
        reports: The reports that the step has not taken; None at the end.
        group: The report of the whole, once it is known.
        bytes_done: The bytes that were read.
        bytes_expected: The bytes that are expected in all.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.reports: queue.SimpleQueue[SyncReport | None] = queue.SimpleQueue()
        self.group: GroupReport | None = None
        self.bytes_done = self.bytes_expected = 0

    def report(self, report: SyncReport) -> None:
        """Give the step the report of a table."""
        self._assert_running()
        self.reports.put(report)

    def all_at_once(self, group: GroupReport) -> None:
        """Give the step the reports of a group that was not reported table by table."""
        self.group = group
        for report in group.reports.values():
            self.report(report)

    def progress(self, done: int, total: int, unit: Unit) -> None:
        """Take note of the bytes that were read."""
        self._assert_running()
        self.bytes_done, self.bytes_expected = done, total

    def _assert_running(self) -> None:
        if self.stop.is_set():
            raise _Ended


class RunningSync:
    """A sync, and the iterator of its reports."""

    def __init__(
        self, sync: Callable[[Handover], GroupReport], log: dg.DagsterLogManager, tables: int
    ) -> None:
        """Describe a sync; it begins with the first report that is asked for.

        Args:
            sync: The sync.
            log: Where a line is logged from time to time.
            tables: How many tables it syncs.
        """
        self._sync = sync
        self._log = log
        self._tables = tables
        self._taken = 0
        self._error: BaseException | None = None
        self._handover = Handover()

    def __iter__(self) -> Iterator[SyncReport]:
        """Yield each report as soon as it is there.

        Raises:
            dg.Failure: The sync failed as a whole.
        """
        # A daemon: a statement that does not end must not keep the process.
        thread = threading.Thread(target=self._run, daemon=True, name="sync")
        thread.start()
        try:
            yield from self._until_the_end()
        finally:
            self._handover.stop.set()
            thread.join(END_TIMEOUT_S)
        if self._error is not None:
            raise self._error

    @property
    def group(self) -> GroupReport:
        """The report of the whole; known when all reports were taken."""
        assert self._handover.group is not None, "take all reports first"
        return self._handover.group

    def _run(self) -> None:
        try:
            self._handover.group = self._sync(self._handover)
        except BaseException as error:
            self._error = error
        finally:
            self._handover.reports.put(None)

    def _until_the_end(self) -> Iterator[SyncReport]:
        handover = self._handover
        logged = time.monotonic()
        while True:
            report = None
            try:
                if (report := handover.reports.get(timeout=LOG_EVERY_S)) is None:
                    return
            except queue.Empty:
                pass
            if time.monotonic() - logged >= LOG_EVERY_S:
                logged = time.monotonic()
                self._log.info(self._sentence())
            if report is not None:
                self._taken += 1
                yield report

    def _sentence(self) -> str:
        sentence = f"{self._taken:,} of {self._tables:,} tables are committed"
        expected = self._handover.bytes_expected
        if not expected:
            return f"{sentence}."
        done = format_bytes(self._handover.bytes_done)
        return f"{sentence}; {done} of {format_bytes(expected)} were read."
