"""How every synced table of a target stands, told by the marks alone: no table is read."""

from dataclasses import asdict, dataclass
from typing import Any

from psycopg import sql

from replica_platform.xmin.errors import TableBusy
from replica_platform.xmin.session import in_words, open_target
from replica_platform.xmin.target.watermark import SCHEMA, lock

_MARKED = f"select to_regclass('{SCHEMA}.mark') is not null"
_STANDINGS = f"""
select m.target_table, m.mode, extract(epoch from clock_timestamp() - m.synced_at)::float8,
    exists (select from pg_class c where c.oid = m.target_oid)
from {SCHEMA}.mark m order by 1
"""
_FORGET = sql.SQL("delete from {table} where target_table = %s")


@dataclass(frozen=True)
class Standing:
    """One synced table: how and how long ago it was synced, and whether it is still there."""

    target_table: str
    mode: str
    age_s: float
    there: bool

    def as_dict(self) -> dict[str, Any]:
        """The same, plain."""
        return asdict(self)


def standings(target_dsn: str) -> list[Standing]:
    """Every table that was synced into this target, by name."""
    with open_target(target_dsn) as home, in_words("target", f"{SCHEMA}.mark"):
        marked = home.execute(_MARKED).fetchone()
        if not marked or not marked[0]:
            return []
        return [Standing(*row) for row in home.execute(_STANDINGS)]


def forget(target_dsn: str, target_table: str) -> bool:
    """Remove what is remembered of a table that is no longer synced; the table itself stays.

    Args:
        target_dsn: The DSN of the target database.
        target_table: The target table, `schema.table`, as `standings` names it.

    Returns:
        Whether anything was remembered of it.

    Raises:
        TableBusy: A sync of the table runs.
    """
    with open_target(target_dsn) as target, in_words("target", f"{SCHEMA}.mark"):
        marked = target.execute(_MARKED).fetchone()
        if not marked or not marked[0]:
            return False
        if not lock(target, target_table):
            raise TableBusy(f"{target_table} is being synced; run this again when that ended.")
        with target.transaction():
            for table in ("first_copy", "mark"):
                removed = target.execute(
                    _FORGET.format(table=sql.Identifier(SCHEMA, table)), [target_table]
                )
        return removed.rowcount > 0
