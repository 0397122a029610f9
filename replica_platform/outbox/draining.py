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
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from replica_platform import postgres
from replica_platform.errors import PlatformError
from replica_platform.outbox import breaker, file, landing, marking
from replica_platform.outbox.failures import Failure, classify
from replica_platform.outbox.isolating import MostRowsFail, deliver
from replica_platform.outbox.mapping import KindTable, read_mappings
from replica_platform.outbox.place import outbox_files
from replica_platform.outbox.pruning import KEEP_DELIVERED_S, prune
from replica_platform.outbox.reports import DrainReport, FileDrain
from replica_platform.outbox.rollback import reopen_forgotten
from replica_platform.sqlite import sqlite3

BATCH_ROWS = 1000
BATCH_BYTES = 4 * 1024**2
DEADLINE_S = 30.0

Progress = Callable[[int, int], None]


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
    `keep_delivered_s`. With `force` a file is drained though its breaker is open.
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
        progress or (lambda done, total: None),
        tables,
        keep_delivered_s,
        force,
    )
    with closing(_Target(target, deadline_s)) as postgres_target:
        reports = tuple(_drain_file(path, postgres_target, limits) for path in files)
    return DrainReport(reports, time.monotonic() - started)


@functools.cache
def default_code_version() -> str:
    """A digest of this package's own source: another one means that a fix may have come."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return _digest(b"".join(source.read_bytes() for source in sources))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


class _Target:
    """The one connection of a drain, made when first needed and again after it broke."""

    def __init__(self, dsn: str, deadline_s: float) -> None:
        self._dsn = dsn
        self._deadline_s = deadline_s
        self._connection: psycopg.Connection | None = None
        self._away: postgres.CannotConnect | None = None

    def connect(self) -> psycopg.Connection:
        if self._connection is not None and not self._connection.broken:
            return self._connection
        self.close()
        if self._away is not None:
            raise self._away  # waiting for the same server once for each of fifty files
        try:
            connection = postgres.connect(
                self._dsn, application_name="replica outbox drain", autocommit=True
            )
        except postgres.CannotConnect as error:
            self._away = error
            raise
        self._connection = connection
        with postgres.deadline(connection, self._deadline_s):
            landing.prepare(connection, self._deadline_s)
        return connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _drain_file(path: Path, target: _Target, limits: _Limits) -> FileDrain:
    started = time.monotonic()
    counts: Counter[str] = Counter()
    try:
        local = file.open_existing(path)
    except PlatformError as error:
        return FileDrain(str(path), "unreachable", str(error))
    with closing(local):
        before = breaker.read(local)
        if not limits.force and before.wait_s() > 0:
            return _report(local, path, started, counts, "waiting", _wait_sentence(before))
        failure: Failure | None = None
        try:
            state, why = _deliver_all(path, local, target, limits, before, counts)
        except MostRowsFail as error:
            failure = error.failure
        except (psycopg.Error, PlatformError) as error:
            failure = classify(error)
        if failure is not None:
            target.close()
            after = before.after(failure)
            breaker.keep(local, after)
            state, why = "failed", f"{failure.sentence} ({failure.kind}; the rows stay)"
            counts["alerts"] += after.is_news(before)
        elif before.failures and state != "busy":
            breaker.keep(local, breaker.Breaker())
        return _report(
            local, path, started, counts, state, why, failure.sqlstate if failure else None
        )


def _wait_sentence(before: breaker.Breaker) -> str:
    return (
        f"the breaker is open for {before.wait_s():.0f} s more after {before.failures} failures, "
        f"the last: {before.why}"
    )


def _report(
    local: sqlite3.Connection,
    path: Path,
    started: float,
    counts: Counter[str],
    state: str,
    why: str | None,
    sqlstate: str | None = None,
) -> FileDrain:
    (dead_rows,) = local.execute("select count(*) from dead").fetchone()
    return FileDrain(
        str(path),
        state,
        why,
        sqlstate,
        **counts,
        landed=int(file.get_meta(local, "landed") or 0),
        pending=file.pending(local),
        dead_rows=dead_rows,
        seconds=time.monotonic() - started,
    )


def _deliver_all(
    path: Path,
    local: sqlite3.Connection,
    target: _Target,
    limits: _Limits,
    before: breaker.Breaker,
    counts: Counter[str],
) -> tuple[str, str | None]:
    """Deliver until nothing waits; how it ended, and the sentence where that needs one."""
    connection = target.connect()
    with (
        file.sentences(path, "read or mark"),
        landing.only_drain(connection, file.file_uuid(local), limits.deadline_s) as mine,
    ):
        if not mine:
            return "busy", "another drain is at work on this file"
        with postgres.deadline(connection, limits.deadline_s):
            counts["reopened"] += reopen_forgotten(local, connection)
            landing.remember_file(connection, file.file_uuid(local), path)
        counts["revived"] += marking.revive(local, other_than=limits.code_version)
        uuid = file.file_uuid(local)
        total = file.pending(local)
        limits.progress(0, total)
        # What failed as a large batch, for time or memory, may go through as a smaller one.
        batch_rows = max(1, limits.batch_rows >> min(before.failures, 10))
        while rows := marking.next_batch(local, batch_rows, limits.batch_bytes):
            if ended := limits.over():
                return ended, f"{ended}; the rest waits for the next drain"
            _deliver_batch(local, connection, uuid, rows, limits, counts)
            done = sum(counts[name] for name in ("delivered", "absorbed", "conflicts", "dead"))
            limits.progress(done, max(done, total))
        pruned, reopened = prune(local, connection, limits.keep_delivered_s, limits.deadline_s)
        counts["pruned"] += pruned
        counts["reopened"] += reopened
        with postgres.deadline(connection, limits.deadline_s):
            _keep_landed(local, landing.landed_rows(connection, file.identities(local)))
    return "drained", None


def _keep_landed(local: sqlite3.Connection, landed: int) -> None:
    """Kept in the file, so that a report can say it while the target is away."""
    if file.get_meta(local, "landed") != str(landed):
        with file.writing(local):
            file.set_meta(local, "landed", str(landed))


def _deliver_batch(
    local: sqlite3.Connection,
    connection: psycopg.Connection,
    file_uuid: str,
    rows: list[file.Row],
    limits: _Limits,
    counts: Counter[str],
) -> None:
    """Postgres first, the file second; an outcome nobody knows counts as failed."""
    with postgres.deadline(connection, limits.deadline_s):
        delivery = deliver(
            connection,
            file_uuid,
            rows,
            lambda part: landing.land(connection, file_uuid, part, limits.mappings),
        )
    marking.mark_delivered(local, file_uuid, rows, delivery, limits.code_version)
    counts["delivered"] += delivery.new
    counts["absorbed"] += delivery.absorbed
    counts["conflicts"] += len(delivery.conflicts)
    counts["dead"] += len(delivery.bad)
    counts["batches"] += 1
