"""One batch into the target, in one transaction, with its bad rows set aside.

First all at once. Where that fails because of a row, the batch is halved under savepoints until
the bad rows stand alone (1 in 1,000: 21 statements, 35 ms); with many bad rows each row gets a
savepoint of its own, which is then the cheaper way.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg

from replica_platform.outbox.delivery import target as landing
from replica_platform.outbox.delivery.failures import Failure, FailureClass, classify
from replica_platform.outbox.file import Row

BAD_ROWS_BEFORE_SAVEPOINTS = 15
PROBE_ROWS = 20


class MostRowsFail(Exception):
    """Most rows of a probe fail alike: it is the code or the table that is wrong, not the rows."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


@dataclass
class Delivery:
    """What became of a batch: its ledger number, counts, and the rows set aside."""

    number: int | None = None
    rows: list[Row] = field(default_factory=list)
    new: int = 0
    absorbed: int = 0
    conflicts: list[tuple[int, str]] = field(default_factory=list)
    bad: list[tuple[Row, Failure]] = field(default_factory=list)

    def add(self, landed: landing.Landed, rows: Sequence[Row]) -> None:
        self.rows.extend(rows)
        self.new += landed.new
        self.absorbed += landed.absorbed
        self.conflicts.extend(landed.conflicts)


Send = Callable[[Sequence[Row]], landing.Landed]


def deliver(
    connection: psycopg.Connection, file_uuid: str, rows: Sequence[Row], send: Send
) -> Delivery:
    """Commit the good rows of a batch with their ledger row; name the bad ones.

    Errors: whatever is not about a single row, and `MostRowsFail`; then nothing was committed.
    """
    try:
        return _commit(connection, file_uuid, rows, lambda delivery: delivery.add(send(rows), rows))
    except psycopg.Error as error:
        if classify(error).kind is not FailureClass.ROW:
            raise
    return _commit(
        connection, file_uuid, rows, lambda delivery: _isolate(connection, rows, send, delivery)
    )


def _commit(
    connection: psycopg.Connection,
    file_uuid: str,
    rows: Sequence[Row],
    fill: Callable[[Delivery], None],
) -> Delivery:
    delivery = Delivery()
    with connection.transaction():
        # Else a deferred constraint speaks at COMMIT, when no row can be blamed any more.
        connection.execute("set constraints all immediate")
        fill(delivery)
        delivery.rows.sort(key=lambda row: row.seq)
        if delivery.rows:
            delivery.number = landing.write_ledger(
                connection, file_uuid, delivery.rows, delivery.new
            )
    return delivery


def _isolate(
    connection: psycopg.Connection, rows: Sequence[Row], send: Send, delivery: Delivery
) -> None:
    """Depth first, so that `seq` order is kept where it can be."""
    stack = [list(rows)]
    probed = False
    while stack:
        part = stack.pop()
        failure = _try(connection, part, send, delivery)
        if failure is None:
            continue
        if len(part) == 1:
            delivery.bad.append((part[0], failure))
            continue
        if len(delivery.bad) < BAD_ROWS_BEFORE_SAVEPOINTS:
            middle = len(part) // 2
            stack += [part[middle:], part[:middle]]
            continue
        if not probed:
            probed = True
            _probe(connection, rows, send)
        stack += [[row] for row in reversed(part)]
    if len(rows) >= PROBE_ROWS and len(delivery.bad) > len(rows) // 2 and not probed:
        _probe(connection, rows, send)


def _try(
    connection: psycopg.Connection,
    rows: Sequence[Row],
    send: Send,
    delivery: Delivery | None,
) -> Failure | None:
    """Send under a savepoint; without a `delivery` only to see, and nothing stays."""
    try:
        with connection.transaction(force_rollback=delivery is None):
            landed = send(rows)
    except psycopg.Error as error:
        failure = classify(error)
        if failure.kind is not FailureClass.ROW:
            raise
        return failure
    if delivery is not None:
        delivery.add(landed, rows)
    return None


def _probe(connection: psycopg.Connection, rows: Sequence[Row], send: Send) -> None:
    """Try rows from all over the batch, each alone; raise where most fail alike."""
    if len(rows) < PROBE_ROWS:
        return
    # By chance, not every n-th: producers repeat themselves, and every 25th row may be bad.
    sample = random.Random(rows[0].seq).sample(rows, PROBE_ROWS)
    failures = [_try(connection, [row], send, None) for row in sample]
    codes = [failure.sqlstate for failure in failures if failure is not None]
    for failure in failures:
        if failure is not None and codes.count(failure.sqlstate) > PROBE_ROWS // 2:
            raise MostRowsFail(failure)
