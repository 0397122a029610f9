"""The rebuilding of a kind's own table from `outbox.record`.

A mapping that came later, rows that somebody deleted, or a trigger that swallowed them: the records
are all in `outbox.record`, so the table can be filled from there. Rows that exist stay as they are.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import psycopg

from replica_platform.core.reports import Progress
from replica_platform.outbox.delivery.failures import translate_errors, translated
from replica_platform.outbox.delivery.kinds import KindTable, read_mappings
from replica_platform.outbox.delivery.target import Target, begin
from replica_platform.outbox.errors import BadMapping, RowRefused
from replica_platform.outbox.reports import Refill

RECORDS_PER_PAGE = 2000
DEADLINE_S = 60.0

COUNT = "select count(*) from outbox.record where kind = %s"
PAGE = """
select id from outbox.record where kind = %(kind)s and (%(after)s::uuid is null or id > %(after)s)
order by id limit %(limit)s
"""


def refill(
    target: str,
    kind: str,
    mappings: Mapping[str, Any] | Sequence[KindTable],
    *,
    progress: Progress | None = None,
    deadline_s: float = DEADLINE_S,
) -> Refill:
    """Insert the records of a kind that its own table lacks; rows that exist stay as they are.

    Empty the table first to rebuild it whole. It may be repeated, and run beside drains.

    Args:
        target: The connection string of the target.
        kind: The kind whose table to fill.
        mappings: The mappings, of this kind and any others.
        progress: Called with the records done and the records in all.
        deadline_s: The limit of each page of records, in seconds.

    Returns:
        How many records were filled in, and which do not fit the table.

    Raises:
        BadMapping: The mappings are incomplete or contradictory, or lack the kind.
        TargetUnavailable: The target cannot be reached, or not in time.
        TargetRefused: The table is missing or cannot be written.
    """
    tables = read_mappings(mappings)
    if kind not in tables:
        known = ", ".join(sorted(tables)) or "none"
        raise BadMapping(f"The kind {kind!r} has no table; the mappings have: {known}.")
    with translate_errors(), closing(Target(target, deadline_s)) as connections:
        return _refill(connections.connect(), tables[kind], progress, deadline_s)


def _refill(
    connection: psycopg.Connection, table: KindTable, progress: Progress | None, deadline_s: float
) -> Refill:
    counted = connection.execute(COUNT, (table.kind,)).fetchone()
    total = 0 if counted is None else int(counted[0])
    done = filled = 0
    refused: list[tuple[str, str]] = []
    after = None
    while True:
        values = {"kind": table.kind, "after": after, "limit": RECORDS_PER_PAGE}
        with begin(connection, deadline_s):
            ids = [id for (id,) in connection.execute(PAGE, values)]
            filled += _fill(connection, table, ids, refused)
        if not ids:
            break
        after = ids[-1]
        done += len(ids)
        if progress is not None:
            progress(done, max(done, total), "rows")
    name = ".".join(table.table)
    first = refused[0] if refused else None
    return Refill(table.kind, name, done, filled, len(refused), first and ": ".join(first))


def _fill(
    connection: psycopg.Connection,
    table: KindTable,
    ids: Sequence[Any],
    refused: list[tuple[str, str]],
) -> int:
    """Fill in these records, halved until those that do not fit stand alone; return how many."""
    if not ids:
        return 0
    try:
        with connection.transaction():
            return connection.execute(table.insert(), {"ids": list(ids)}).rowcount
    except psycopg.Error as error:
        refusal = translated(error)
        if not isinstance(refusal, RowRefused):
            raise
    if len(ids) == 1:
        refused.append((str(ids[0]), str(refusal)))
        return 0
    middle = len(ids) // 2
    halves = (ids[:middle], ids[middle:])
    return sum(_fill(connection, table, half, refused) for half in halves)
