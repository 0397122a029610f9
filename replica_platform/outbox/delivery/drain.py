"""`drain`: deliver what waits in outbox files to Postgres, as often as needed, with one effect.

The story of a delivery, top to bottom: take the file's lock, see whether the target has forgotten
anything, let dead rows try new code, then batch by batch: commit in Postgres with the ledger
row, and only then note it in the file. A crash in between sends the batch again, and the
target absorbs it. What the statements say belongs to `landing`, what errors mean to `failures`.
"""

import functools
import hashlib
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from replica_platform.core import postgres
from replica_platform.core.errors import PlatformError
from replica_platform.core.reports import Progress
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.delivery import breaker
from replica_platform.outbox.delivery import queue as marking
from replica_platform.outbox.delivery import target as landing
from replica_platform.outbox.delivery.connection import Target
from replica_platform.outbox.delivery.failures import Failure, classify
from replica_platform.outbox.delivery.isolate import MostRowsFail, deliver
from replica_platform.outbox.delivery.kinds import KindTable, read_mappings
from replica_platform.outbox.delivery.prune import KEEP_DELIVERED_S, prune
from replica_platform.outbox.delivery.reconcile import reopen_forgotten
from replica_platform.outbox.reports import DrainReport, FileDrain
from replica_platform.outbox.reserve import (
    despite_a_full_disk,
    is_under_pressure,
    keep_reserve,
)
from replica_platform.outbox.slots import outbox_files

BATCH_ROWS = 1000
BATCH_BYTES = 4 * 1024**2
DEADLINE_S = 30.0


@dataclass(frozen=True)
class _Limits:
    batch_rows: int
    batch_bytes: int
    deadline_s: float
    ends_at: float | None
    stop: threading.Event
    code_version: str
    progress: Progress
    mappings: Mapping[str, KindTable]
    keep_delivered_s: float
    force: bool

    def over(self) -> str | None:
        """Why to end before all is delivered; None to go on."""
        if self.stop.is_set():
            return "stopped"
        if self.ends_at is not None and time.monotonic() >= self.ends_at:
            return "time is up"
        return None


def drain(
    paths: Sequence[Path],
    target: str,
    *,
    batch_rows: int = BATCH_ROWS,
    batch_bytes: int = BATCH_BYTES,
    budget_s: float | None = None,
    mappings: Mapping[str, Any] | Sequence[KindTable] | None = None,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
    deadline_s: float = DEADLINE_S,
    keep_delivered_s: float = KEEP_DELIVERED_S,
    force: bool = False,
    code_version: str | None = None,
) -> DrainReport:
    """Deliver what waits in `paths` (files, or folders of `*.db`) to the Postgres at `target`.

    Order is that of `seq` in each file. `budget_s` bounds the whole, `deadline_s` one batch,
    and `stop` ends it after the current batch. `progress` is told (rows done, rows in all).
    `mappings` gives kinds a table of their own (see `mapping`). Delivered rows are pruned after
    `keep_delivered_s`, or at once where the disk or the file's cap runs out. With `force` a file
    is drained though its breaker is open.
    Never raises for what is wrong with a file or the target: the report names it.
    Errors: `BadMapping`.
    """
    started = time.monotonic()
    files = outbox_files(paths)
    tables = read_mappings(mappings)
    limits = _Limits(
        batch_rows,
        batch_bytes,
        deadline_s,
        None if budget_s is None else started + budget_s,
        stop or threading.Event(),
        f"{code_version or default_code_version()}-{_digest(repr(tables).encode())}",
        progress or (lambda done, total, unit: None),
        tables,
        keep_delivered_s,
        force,
    )
    with closing(Target(target, deadline_s)) as way:
        reports = tuple(_drain_file(path, way, limits) for path in files)
    return DrainReport(reports, time.monotonic() - started)


@functools.cache
def default_code_version() -> str:
    """A digest of this package's own source: another one means that a fix may have come."""
    sources = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return _digest(b"".join(source.read_bytes() for source in sources))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _drain_file(path: Path, target: Target, limits: _Limits) -> FileDrain:
    """Drain one file; what is wrong with it, or with the target, becomes its report."""
    try:
        with (
            closing(file.open_existing(path)) as local,
            file.sentences(path, "drain it"),
        ):
            return _FileRun(path, local, limits).drain(target)
    except PlatformError as error:
        return FileDrain(str(path), "unreachable", str(error))


class _FileRun:
    """One file while it is drained."""

    def __init__(self, path: Path, local: sqlite3.Connection, limits: _Limits) -> None:
        self._path = path
        self._local = local
        self._limits = limits
        self._counts: Counter[str] = Counter()
        self._started = time.monotonic()
        self._breaker = breaker.read(local)

    def drain(self, target: Target) -> FileDrain:
        """Deliver, unless the breaker is open; keep in the file what that says about the next."""
        wait_s = self._breaker.wait_s()
        if wait_s > 0 and not self._limits.force:
            return self._report(
                "waiting",
                f"the breaker is open for {wait_s:.0f} s more after {self._breaker.failures} "
                f"failures, the last: {self._breaker.why}",
            )
        try:
            state, why = self._deliver_all(target)
        except MostRowsFail as error:
            return self._failed(target, error.failure)
        except (psycopg.Error, PlatformError) as error:
            return self._failed(target, classify(error))
        if self._breaker.failures and state != "busy":
            breaker.keep(self._local, breaker.Breaker())
        return self._report(state, why)

    def _failed(self, target: Target, failure: Failure) -> FileDrain:
        target.close()
        after = self._breaker.after(failure)
        self._counts["alerts"] += after.is_news(self._breaker)
        # On a full disk the breaker is not kept: then the next drain just does not wait.
        with suppress(sqlite3.OperationalError):
            breaker.keep(self._local, after)
        why = f"{failure.sentence} ({failure.kind}; the rows stay)"
        return self._report("failed", why, failure.sqlstate)

    def _report(self, state: str, why: str | None, sqlstate: str | None = None) -> FileDrain:
        (dead_rows,) = self._local.execute("select count(*) from dead").fetchone()
        return FileDrain(
            str(self._path),
            state,
            why,
            sqlstate,
            **self._counts,
            landed=int(file.get_meta(self._local, "landed") or 0),
            pending=file.pending(self._local),
            dead_rows=dead_rows,
            seconds=time.monotonic() - self._started,
        )

    def _deliver_all(self, target: Target) -> tuple[str, str | None]:
        """Deliver until nothing waits; how it ended, and the sentence where that needs one."""
        local, limits, counts = self._local, self._limits, self._counts
        connection = target.connect()
        with (
            file.sentences(self._path, "read or mark"),
            landing.only_drain(connection, file.file_uuid(local), limits.deadline_s) as mine,
        ):
            if not mine:
                return "busy", "another drain is at work on this file"
            with postgres.deadline(connection, limits.deadline_s):
                counts["reopened"] += reopen_forgotten(local, connection)
                landing.remember_file(connection, file.file_uuid(local), self._path)
            counts["revived"] += marking.revive(local, other_than=limits.code_version)
            # What comes while this goes on waits for the next drain: one busy worker's file would
            # otherwise keep the others waiting for ever.
            until, total = file.last_seq(local), file.pending(local)
            limits.progress(0, total, "rows")
            # What failed as a large batch, for time or memory, may go through as a smaller one;
            # each success doubles it, or an outage's backlog would go row by row.
            batch_rows = max(1, limits.batch_rows >> min(self._breaker.failures, 10))
            while rows := marking.next_batch(local, batch_rows, limits.batch_bytes, until):
                if ended := limits.over():
                    return ended, f"{ended}; the rest waits for the next drain"
                self._deliver_batch(connection, rows)
                batch_rows = min(limits.batch_rows, batch_rows * 2)
                done = sum(counts[name] for name in ("delivered", "absorbed", "conflicts", "dead"))
                limits.progress(done, max(done, total), "rows")
            self._tidy(connection)
        return "drained", None

    def _deliver_batch(self, connection: psycopg.Connection, rows: list[file.Row]) -> None:
        """Postgres first, the file second; an outcome nobody knows counts as failed."""
        uuid, limits = file.file_uuid(self._local), self._limits
        with postgres.deadline(connection, limits.deadline_s):
            delivery = deliver(
                connection,
                uuid,
                rows,
                lambda part: landing.land(connection, uuid, part, limits.mappings),
            )
        despite_a_full_disk(
            self._path,
            lambda: marking.mark_delivered(self._local, uuid, rows, delivery, limits.code_version),
        )
        self._counts["delivered"] += delivery.new
        self._counts["absorbed"] += delivery.absorbed
        self._counts["conflicts"] += len(delivery.conflicts)
        self._counts["dead"] += len(delivery.bad)
        self._counts["batches"] += 1

    def _tidy(self, connection: psycopg.Connection) -> None:
        """Prune what was delivered long ago, and note what the target holds in all."""
        local, limits = self._local, self._limits
        keep_s = 0.0 if is_under_pressure(self._path, local) else limits.keep_delivered_s
        pruned, reopened = prune(local, connection, keep_s, limits.deadline_s)
        self._counts["pruned"] += pruned
        self._counts["reopened"] += reopened
        with postgres.deadline(connection, limits.deadline_s):
            landed = landing.landed_rows(connection, file.identities(local))
        # Kept in the file, so that a report can say it while the target is away.
        if file.get_meta(local, "landed") != str(landed):
            with file.writing(local):
                file.set_meta(local, "landed", str(landed))
        keep_reserve(self._path)
