"""`drain`: deliver what waits in outbox files to Postgres, as often as needed, with one effect.

A delivery, top to bottom: take the file's lock, resend what the target no longer has, try dead
rows again if the code changed, then batch by batch commit in Postgres with the ledger row, and
only then note it in the file. After a crash in between, the batch is sent again and the target
absorbs it. The SQL belongs to `statements`, the meaning of errors to `failures`.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from replica_platform.core import postgres
from replica_platform.core.errors import PlatformError, TransientError
from replica_platform.core.reports import Progress
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import breaker, file, queue
from replica_platform.outbox.delivery import statements
from replica_platform.outbox.delivery.failures import translate_errors
from replica_platform.outbox.delivery.isolate import deliver, is_answered
from replica_platform.outbox.delivery.kinds import KindTable, read_mappings, version_of
from replica_platform.outbox.delivery.ledger import HeadMoved, heads
from replica_platform.outbox.delivery.prune import (
    KEEP_DELIVERED_S,
    ROWS_PER_SHORT_STEP,
    ROWS_PER_STEP,
    Pruning,
    delivered_before,
    give_space_back,
    prune,
)
from replica_platform.outbox.delivery.reconcile import (
    missing_rows,
    resend_lost_batches,
    resend_rows,
)
from replica_platform.outbox.delivery.target import STATEMENT_SHARE, Target, begin
from replica_platform.outbox.errors import OutboxFull, RowRefused, TargetUnavailable
from replica_platform.outbox.errors import translate_errors as translate_sqlite_errors
from replica_platform.outbox.queue import Delivery
from replica_platform.outbox.reports import DrainReport, FileDrain
from replica_platform.outbox.reserve import (
    ensure_reserve,
    is_nearly_full,
    release_reserve,
    write_with_reserve,
)
from replica_platform.outbox.slots import drain_lock, outbox_files

BATCH_ROWS = 1000
BATCH_BYTES = 4 * 1024**2
DEADLINE_S = 30.0
MOVES_IN_A_ROW = 100  # of the ledger by other drains, before a batch gives up


@dataclass(frozen=True)
class DrainOptions:
    """How a drain delivers.

    Attributes:
        batch_rows: The largest number of rows in a batch.
        batch_bytes: The largest size of a batch, in bytes of payload.
        deadline_s: The limit of one batch, in seconds.
        ends_at: When to end the whole drain, in monotonic time; None for no limit.
        stop: Ends the drain after the current batch.
        code_version: The version of the code and the mappings; another one revives dead rows.
        progress: Called with the rows done and the rows in all.
        mappings: Each mapped kind's own table.
        keep_delivered_s: How long delivered rows stay in the file, in seconds.
        force: Whether to drain a file while its breaker is open.
        repair: Whether to look for every delivered row that is still in the file.
    """

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
    repair: bool

    def reason_to_end(self) -> str | None:
        """Return why to end before all is delivered; None to continue."""
        if self.stop.is_set():
            return "stopped"
        if self.ends_at is not None and time.monotonic() >= self.ends_at:
            return "time is up"
        return None


def drain(
    paths: Sequence[Path],
    target: str | Target,
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
    repair: bool = False,
    code_version: str | None = None,
) -> DrainReport:
    """Deliver what waits in outbox files to Postgres, each file in the order of its `seq`.

    Args:
        paths: Outbox files, or folders of `*.db`.
        target: The connection string of the Postgres to deliver to, or a `Target` that the caller
            keeps open between drains.
        batch_rows: The largest number of rows in a batch.
        batch_bytes: The largest size of a batch, in bytes of payload.
        budget_s: The limit of the whole drain, in seconds; None for no limit.
        mappings: Kinds that fill a table of their own (see `kinds.read_mappings`).
        stop: Ends the drain after the current batch when set.
        progress: Called with the rows done and the rows in all, for each file.
        deadline_s: The limit of one batch, in seconds.
        keep_delivered_s: How long delivered rows stay in the file, in seconds. They are pruned
            at once if the disk or the file's cap is nearly used up.
        force: Whether to drain a file while its breaker is open.
        repair: Whether to look in the target for every delivered row that is still in the file,
            and to resend the missing ones. Without it, only whole batches that the target's
            ledger lacks are resent.
        code_version: The version of the code; another one than a dead row's tries it again.

    Returns:
        One report for each file. What is wrong with a file or the target is named there and
        raises nothing.

    Raises:
        BadMapping: The mappings are incomplete or contradictory.
    """
    started = time.monotonic()
    tables = read_mappings(mappings)
    options = DrainOptions(
        batch_rows=batch_rows,
        batch_bytes=batch_bytes,
        deadline_s=deadline_s,
        ends_at=None if budget_s is None else started + budget_s,
        stop=stop or threading.Event(),
        code_version=version_of(code_version, tables),
        progress=progress or (lambda done, total, unit: None),
        mappings=tables,
        keep_delivered_s=keep_delivered_s,
        force=force,
        repair=repair,
    )
    with ExitStack() as stack:
        if isinstance(target, str):
            target = stack.enter_context(closing(Target(target, deadline_s)))
        target.check()
        reports = tuple(_drain_file(path, target, options) for path in outbox_files(paths))
    return DrainReport(reports, time.monotonic() - started)


def _drain_file(path: Path, target: Target, options: DrainOptions) -> FileDrain:
    """Drain one file; an error of the file or the target becomes its report."""
    try:
        with (
            closing(file.open_existing(path)) as local,
            translate_sqlite_errors(path, "drain it"),
        ):
            file.prepare_for_delivery(local)
            return _FileRun(path, local, options).drain(target)
    except PlatformError as error:
        return FileDrain(str(path), "unreachable", str(error))


class _FileRun:
    """The drain of one file."""

    def __init__(self, path: Path, local: sqlite3.Connection, options: DrainOptions) -> None:
        self._path = path
        self._local = local
        self._options = options
        self._counts: Counter[str] = Counter()
        self._started = time.monotonic()
        self._breaker = breaker.read(local)
        self._space_is_short = False

    def drain(self, target: Target) -> FileDrain:
        """Deliver unless the breaker is open; store its new state in the file."""
        wait_s = self._breaker.wait_s()
        if wait_s > 0 and not self._options.force:
            return self._report(
                "waiting",
                f"the breaker is open for {wait_s:.0f} s more after {self._breaker.failures} "
                f"failures, the last: {self._breaker.why}",
                retry_s=wait_s,
            )
        try:
            with translate_errors():
                state, why = self._deliver_with_reserve(target)
        except PlatformError as error:
            return self._failed(target, error)
        if self._breaker.failures and state != "busy":
            breaker.store(self._local, breaker.Breaker())
        return self._report(state, why)

    def _failed(self, target: Target, error: PlatformError) -> FileDrain:
        """Count the failure in the breaker and report it."""
        target.close()
        after = self._breaker.after(error)
        self._counts["alerts"] += after.is_news(self._breaker)
        # On a full disk the breaker cannot be stored: the next drain then does not wait.
        with suppress(sqlite3.OperationalError):
            breaker.store(self._local, after)
        kind = "transient" if isinstance(error, TransientError) else "systemic"
        return self._report(
            "failed", f"{error} ({kind}; the rows stay)", after.sqlstate, retry_s=after.wait_s()
        )

    def _report(
        self,
        state: str,
        why: str | None,
        sqlstate: str | None = None,
        retry_s: float | None = None,
    ) -> FileDrain:
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
            retry_s=retry_s,
        )

    def _deliver_with_reserve(self, target: Target) -> tuple[str, str | None]:
        """Deliver; on a full disk, once more with the space of the reserve."""
        try:
            return self._deliver_all(target)
        except OutboxFull:
            if not release_reserve(self._path):
                raise
            return self._deliver_all(target)

    def _deliver_all(self, target: Target) -> tuple[str, str | None]:
        """Deliver until no row waits; return the state, and the reason for any but drained."""
        connection = target.connect()
        with (
            translate_sqlite_errors(self._path, "note the delivery"),
            drain_lock(self._path) as is_ours,
        ):
            if not is_ours:
                return "busy", "another drain is at work on this file"
            self._prepare(connection)
            ended = self._deliver_batches(target)
            if ended:
                return ended, f"{ended}; the rest waits for the next drain"
            self._tidy(target.connect())
        return "drained", None

    def _prepare(self, connection: psycopg.Connection) -> None:
        """Queue rows for resending: those the target lost, and dead rows for other code."""
        options = self._options
        self._resend_lost_batches(connection)
        with begin(connection, options.deadline_s):
            statements.remember_file(connection, file.file_uuid(self._local), self._path)
        if options.repair:
            for _, missing in missing_rows(self._local, connection, options.deadline_s):
                self._counts["reopened"] += resend_rows(self._local, missing)
                if options.reason_to_end():
                    break
        self._counts["revived"] += queue.revive(self._local, other_than=options.code_version)

    def _resend_lost_batches(self, connection: psycopg.Connection) -> None:
        self._counts["reopened"] += resend_lost_batches(
            self._local, connection, self._options.deadline_s
        )

    def _deliver_batches(self, target: Target) -> str | None:
        """Deliver batch by batch; return why it ended early, if it did."""
        local, options = self._local, self._options
        # Rows appended from here on wait for the next drain: otherwise one busy worker's file
        # would keep the other files waiting for ever.
        until, total = file.last_seq(local), file.pending(local)
        options.progress(0, total, "rows")
        # A batch that failed for its time or memory may pass as a smaller one. Each success
        # doubles the size again; without that, an outage's backlog would go row by row.
        batch_rows = max(1, options.batch_rows >> min(self._breaker.failures, 10))
        singly = moved = 0
        while rows := queue.next_batch(
            local, 1 if singly else batch_rows, options.batch_bytes, until
        ):
            if ended := options.reason_to_end():
                return ended
            began = time.monotonic()
            try:
                self._deliver_batch(target.connect(), rows)
            except HeadMoved as error:  # another drain delivered, or the target was restored
                moved += 1
                if moved > MOVES_IN_A_ROW:
                    raise TargetUnavailable(str(error)) from error
                self._resend_lost_batches(target.connect())
                continue
            except psycopg.errors.QueryCanceled as error:
                # The server answers, unlike one that went silent. Was it the statement's limit?
                if time.monotonic() - began < STATEMENT_SHARE * options.deadline_s:
                    raise
                if len(rows) > 1:
                    singly = len(rows)  # one slow row must not delay the others
                    continue
                self._set_aside(target, rows[0], error)
            moved = 0
            singly = max(0, singly - len(rows))
            batch_rows = min(options.batch_rows, batch_rows * 2)
            done = sum(
                self._counts[name] for name in ("delivered", "absorbed", "conflicts", "dead")
            )
            options.progress(done, max(done, total), "rows")
        return None

    def _set_aside(self, target: Target, row: file.Row, error: psycopg.Error) -> None:
        """Set a row aside that hit the deadline alone, if the target takes another row in time.

        Otherwise the target is slow and not the row: then `error` is raised.
        """
        deadline_s = self._options.deadline_s
        other = queue.another(self._local, row.seq, self._options.batch_rows)
        uuid, mappings = file.file_uuid(self._local), self._options.mappings
        connection = target.connect()
        send = partial(statements.insert_records, connection, uuid, mappings=mappings)
        if other is None or not is_answered(connection, other, send, deadline_s):
            raise error
        refusal = RowRefused(
            f"This row alone takes longer than the deadline of {deadline_s:g} s, "
            f"another does not: {error}",
            error.sqlstate,
        )
        self._note([row], Delivery(None, (), 0, 0, (), ((row, refusal),)))

    def _deliver_batch(self, connection: psycopg.Connection, sent: list[file.Row]) -> None:
        """Commit in Postgres first, in the file second; an unknown outcome counts as failed."""
        uuid, options = file.file_uuid(self._local), self._options
        with postgres.deadline(connection, options.deadline_s):
            delivery = deliver(
                connection,
                uuid,
                sent,
                partial(statements.insert_records, connection, uuid, mappings=options.mappings),
                queue.last_entry(self._local, uuid),
                options.deadline_s,
            )
        self._note(sent, delivery)
        self._counts["batches"] += 1
        if delivery.entry is not None:
            # As the drain goes: a file at its cap takes records again after the first batch, and a
            # drain that ends early has pruned twice what it delivered.
            self._prune(connection, delivery.entry.landed_at, lambda rows: rows >= 2 * len(sent))

    def _note(self, sent: list[file.Row], delivery: Delivery) -> None:
        """Note in the file what became of a batch, and count it."""
        uuid, code_version = file.file_uuid(self._local), self._options.code_version
        write_with_reserve(
            self._path,
            lambda: queue.mark_delivered(self._local, uuid, sent, delivery, code_version),
        )
        self._counts["delivered"] += delivery.new
        self._counts["absorbed"] += delivery.absorbed
        self._counts["conflicts"] += len(delivery.conflicts)
        self._counts["dead"] += len(delivery.refused)

    def _tidy(self, connection: psycopg.Connection) -> None:
        """Prune rows delivered long ago, and note how many the target has in all."""
        local, options = self._local, self._options
        with begin(connection, options.deadline_s):
            now = statements.now(connection)
            landed = sum(head.landed for head in heads(connection, file.identities(local)).values())
        # Stored in the file, so that a report can show it while the target is unreachable.
        if file.get_meta(local, "landed") != str(landed):
            with file.writing(local):
                file.set_meta(local, "landed", str(landed))
        self._prune(connection, now, lambda rows: options.reason_to_end() is not None)
        give_space_back(local)
        ensure_reserve(self._path)

    def _prune(
        self, connection: psycopg.Connection, now: float, is_enough: Callable[[int], bool]
    ) -> None:
        """Prune what was delivered long ago; all that was delivered, if space is short."""
        local, options = self._local, self._options
        # Until the drain's end, so that the next burst of records finds space.
        self._space_is_short = self._space_is_short or is_nearly_full(self._path, local)
        if self._space_is_short:
            through, step_rows = file.delivered_through(local), ROWS_PER_SHORT_STEP
        else:
            through = delivered_before(local, now, options.keep_delivered_s)
            step_rows = ROWS_PER_STEP
        what = Pruning(through, step_rows, options.deadline_s, is_enough)
        write_with_reserve(self._path, lambda: prune(local, connection, what, self._counts))
