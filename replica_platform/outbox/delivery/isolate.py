"""The delivery of one batch in one transaction, with its bad rows set aside.

All rows are sent at once. If that fails because of a row, the batch is halved under savepoints
until the bad rows stand alone (1 in 1,000: 21 statements, 35 ms); with many bad rows, a savepoint
for each row is cheaper.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import psycopg

from replica_platform.outbox.delivery import ledger
from replica_platform.outbox.delivery.failures import translated
from replica_platform.outbox.delivery.statements import Inserted
from replica_platform.outbox.delivery.target import begin, transaction
from replica_platform.outbox.errors import RowRefused, TargetRefused
from replica_platform.outbox.file import Row
from replica_platform.outbox.queue import Delivery, LedgerEntry

BAD_ROWS_BEFORE_SAVEPOINTS = 15
PROBE_ROWS = 20

Send = Callable[[Sequence[Row]], Inserted]


@dataclass
class _Parts:
    """The parts of a batch inside its transaction.

    Attributes:
        rows: The rows sent.
        inserted: What each insertion did.
        refused: The rows that the target refuses, each with its error.
    """

    rows: list[Row] = field(default_factory=list)
    inserted: list[Inserted] = field(default_factory=list)
    refused: list[tuple[Row, RowRefused]] = field(default_factory=list)


def is_answered(connection: psycopg.Connection, row: Row, send: Send, deadline_s: float) -> bool:
    """Return whether the target accepts or refuses a row within the deadline; nothing is kept."""
    try:
        with begin(connection, deadline_s), connection.transaction(force_rollback=True):
            send([row])
    except psycopg.errors.QueryCanceled:
        return False
    except psycopg.Error as error:
        return isinstance(translated(error), RowRefused)
    return True


def deliver(
    connection: psycopg.Connection,
    file_uuid: str,
    rows: Sequence[Row],
    send: Send,
    before: LedgerEntry,
    deadline_s: float,
) -> Delivery:
    """Commit the good rows of a batch with their ledger entry; name the bad ones.

    `before` is the last batch that the file notes. Errors of the driver that concern no single
    row pass through; nothing is committed then.

    Raises:
        HeadMoved: The target's ledger is not at `before`; nothing is committed.
        TargetRefused: Most rows of a sample fail alike; nothing is committed.
    """
    commit = partial(_commit, connection, file_uuid, before, deadline_s)
    try:
        return commit(lambda: _all_at_once(rows, send))
    except psycopg.Error as error:
        if not isinstance(translated(error), RowRefused):
            raise
    return commit(lambda: _without_bad_rows(connection, rows, send))


def _commit(
    connection: psycopg.Connection,
    file_uuid: str,
    before: LedgerEntry,
    deadline_s: float,
    send_parts: Callable[[], _Parts],
) -> Delivery:
    """Send the parts of a batch and commit them with the ledger entry."""
    with transaction(connection, deadline_s):
        ledger.hold(connection, file_uuid, before)
        # A deferred constraint would fail at COMMIT, where no row can be blamed any more.
        connection.execute("set constraints all immediate")
        parts = send_parts()
        rows = tuple(sorted(parts.rows, key=lambda row: row.seq))
        new = sum(one.new for one in parts.inserted)
        entry = ledger.advance(connection, file_uuid, rows, new) if rows else None
    return Delivery(
        entry=entry,
        rows=rows,
        new=new,
        absorbed=sum(one.absorbed for one in parts.inserted),
        conflicts=tuple(found for one in parts.inserted for found in one.conflicts),
        refused=tuple(parts.refused),
    )


def _all_at_once(rows: Sequence[Row], send: Send) -> _Parts:
    return _Parts(list(rows), [send(rows)])


def _without_bad_rows(connection: psycopg.Connection, rows: Sequence[Row], send: Send) -> _Parts:
    """Send a batch in parts until its bad rows stand alone, depth first to keep `seq` order.

    Raises:
        TargetRefused: Most rows of a sample fail alike.
    """
    parts = _Parts()
    stack = [list(rows)]
    sampled = False
    while stack:
        part = stack.pop()
        outcome = _try(connection, part, send)
        if isinstance(outcome, Inserted):
            parts.rows += part
            parts.inserted.append(outcome)
        elif len(part) == 1:
            parts.refused.append((part[0], outcome))
        elif len(parts.refused) < BAD_ROWS_BEFORE_SAVEPOINTS:
            middle = len(part) // 2
            stack += [part[middle:], part[:middle]]
        else:
            if not sampled:
                sampled = True
                _check_sample(connection, rows, send)
            stack += [[row] for row in reversed(part)]
    if not sampled and len(parts.refused) > len(rows) // 2:
        _check_sample(connection, rows, send)
    return parts


def _try(
    connection: psycopg.Connection, rows: Sequence[Row], send: Send, keep: bool = True
) -> Inserted | RowRefused:
    """Send rows under a savepoint, which is rolled back unless `keep`; return what happened.

    Errors of the driver that concern no single row pass through.
    """
    try:
        with connection.transaction(force_rollback=not keep):
            return send(rows)
    except psycopg.Error as error:
        refusal = translated(error)
        if not isinstance(refusal, RowRefused):
            raise
        return refusal


def _check_sample(connection: psycopg.Connection, rows: Sequence[Row], send: Send) -> None:
    """Try rows from all over the batch, each alone.

    Raises:
        TargetRefused: Most of them fail alike, so the code or the table is wrong and not the rows.
    """
    if len(rows) < PROBE_ROWS:
        return
    # At random, not every n-th: producers repeat themselves, and every 25th row may be bad.
    sample = random.Random(rows[0].seq).sample(rows, PROBE_ROWS)
    outcomes = [_try(connection, [row], send, keep=False) for row in sample]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, RowRefused)]
    codes = [refusal.sqlstate for refusal in refusals]
    for refusal in refusals:
        if codes.count(refusal.sqlstate) > PROBE_ROWS // 2:
            raise TargetRefused(str(refusal), refusal.sqlstate)
