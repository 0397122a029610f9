"""Sync status: when each table of a target was last synced, by its watermark.

No user table is read here; whether the rows are right is shown by `integrity`.
"""

from dataclasses import dataclass

from psycopg import sql

from replica_platform.core.postgres import one_value
from replica_platform.core.reports import ReportFields, format_age
from replica_platform.xmin.errors import TableBusy, translate_errors
from replica_platform.xmin.names import TableName
from replica_platform.xmin.session import open_target
from replica_platform.xmin.target.proof import forget_proofs
from replica_platform.xmin.target.schemas import SCHEMA
from replica_platform.xmin.target.watermark import lock, prepare

_HAS_WATERMARKS = f"select to_regclass('{SCHEMA}.mark') is not null"
_HAS_PROOFS = f"select to_regclass('{SCHEMA}.proof') is not null"
_STATUS = f"""
select m.target_table, m.mode, extract(epoch from clock_timestamp() - m.synced_at)::float8,
    exists (select from pg_class c where c.oid = m.target_oid)
from {SCHEMA}.mark m order by 1
"""
_PROOFS = f"""
select p.target_table, extract(epoch from clock_timestamp() - p.proven_at)::float8
from {SCHEMA}.proof p join {SCHEMA}.mark m using (target_table, target_oid)
"""
_FORGET = sql.SQL("delete from {table} where target_table = %s")


@dataclass(frozen=True)
class SyncStatus(ReportFields):
    """The last sync of one target table.

    Attributes:
        target_table: The target table.
        mode: How its source was read.
        age_s: Seconds since, by the target's clock.
        there: Whether the target still has the table.
        proven_age_s: Seconds since its whole content was proven equal; None if it never was.
    """

    target_table: str
    mode: str
    age_s: float
    there: bool
    proven_age_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the target still has the table."""
        return self.there

    @property
    def sentence(self) -> str:
        """When the table was synced, and what to do where it is gone."""
        if not self.there:
            return f"{self.target_table} is gone from the target; sync it again."
        return f"{self.target_table} was synced {format_age(self.age_s)} ago ({self.mode})."


def status(target: str) -> list[SyncStatus]:
    """Return the status of every table that was synced into a target.

    Args:
        target: The DSN of the target.

    Returns:
        One entry per target table, by name; none where nothing was synced.

    Raises:
        CannotConnect: The target does not answer.
        TargetInterrupted: The target ended the query.
    """
    with open_target(target) as connection, translate_errors("target", f"{SCHEMA}.mark"):
        if not one_value(connection.execute(_HAS_WATERMARKS)):
            return []
        proofs: dict[str, float] = {}
        if one_value(connection.execute(_HAS_PROOFS)):
            proofs.update(connection.execute(_PROOFS).fetchall())
        return [
            SyncStatus(name, mode, age_s, there, proofs.get(name))
            for name, mode, age_s, there in connection.execute(_STATUS)
        ]


def forget(target: str, table: str) -> bool:
    """Remove the watermark of a table that is no longer synced; the table itself stays.

    Args:
        target: The DSN of the target.
        table: The target table, `schema.table`.

    Returns:
        Whether the target had a watermark of it.

    Raises:
        BadTableName: This is not the name of a table.
        CannotConnect: The target does not answer.
        TableBusy: A sync of the table runs.
        TargetInterrupted: The target ended the query.
    """
    name = TableName.parse(table)
    with open_target(target) as connection, translate_errors("target", f"{SCHEMA}.mark"):
        if not one_value(connection.execute(_HAS_WATERMARKS)):
            return False
        if not lock(connection, name):
            raise TableBusy(f"{name} is being synced; run this again when that has ended.")
        prepare(connection)
        with connection.transaction():
            forget_proofs(connection, name)
            for remembered in ("first_copy", "block_counts", "mark"):
                removed = connection.execute(
                    _FORGET.format(table=sql.Identifier(SCHEMA, remembered)), [str(name)]
                )
        return removed.rowcount > 0
