"""The log of writes: one row for each write that changed a table.

Checks read only the days that were written since the last publication, and readers can tell what is
new since the generation that they know.
"""

from datetime import date

from replica_platform.market.tables.master import Connection, has_table, value

TABLE = """
create table if not exists batches (
    batch bigint, table_name varchar, written_at timestamptz, first_day date,
    inserted bigint, updated bigint, total bigint
)
"""


def log_batch(
    connection: Connection,
    table: str,
    *,
    first_day: date | None,
    inserted: int,
    updated: int,
    total: int,
) -> None:
    """Add a row for a write, in its transaction.

    Args:
        connection: The master, in the transaction of the write.
        table: The table that was written.
        first_day: The earliest day written; None for a table without days.
        inserted: The number of new rows.
        updated: The number of changed rows.
        total: The rows of the table; for `symbols`, the listed ones.
    """
    connection.execute(TABLE)
    connection.execute(
        "insert into batches select coalesce(max(batch), 0) + 1, ?, now(), ?, ?, ?, ? from batches",
        [table, first_day, inserted, updated, total],
    )


def newest_batch(connection: Connection, table: str | None = None) -> int:
    """Return the number of the last write, of one table or of any; 0 before the first."""
    if not has_table(connection, "batches"):
        return 0
    return int(
        value(
            connection,
            "select coalesce(max(batch), 0) from batches where $1 is null or table_name = $1",
            [table],
        )
    )
