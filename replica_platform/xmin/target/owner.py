"""The owner of a target table: the one source table that its watermark names.

Whether a sync may write to the target is decided here; how it then reads is `plan`'s.
"""

import psycopg

from replica_platform.xmin.errors import TargetTaken
from replica_platform.xmin.names import TableName
from replica_platform.xmin.source.catalog import Table
from replica_platform.xmin.source.snapshot import Identity
from replica_platform.xmin.target.watermark import Mark

_NAME = "select datname from pg_database where oid = %s"


def check(
    source: psycopg.Connection,
    now: Identity,
    table: Table,
    target: TableName,
    holder: Mark | None,
    *,
    take_over: bool = False,
) -> bool:
    """Return whether `table` takes the target over from another owner.

    The owner is a table of one schema and name in one database. A database is the same where its
    server and oid are, or its name: a restore and a major upgrade change the system identifier
    and keep the names, so the sync goes on there by itself. `holder` is the target's watermark.

    Raises:
        TargetTaken: The target has another owner, and `take_over` is not set.
    """
    problem = _problem(source, now, table, holder) if holder else ""
    if not problem or take_over:
        return bool(problem)
    raise TargetTaken(
        f"{target} {problem} Nothing was changed. Let {table.name} of the database {now.name} "
        f"arrive in another schema with `into`; or, if it is meant to replace the rows of "
        f"{target}, sync it once with --take-over (in Python: take_over=True)."
    )


def former(holder: Mark | None, now: Identity, table: Table) -> tuple[str, ...]:
    """Return the places where the source table was on other servers, for the new watermark."""
    if holder is None or holder.source_table != str(table.name):
        return ()
    places = set(holder.identity.former)
    if moved(holder.identity, now):
        places.add(_place(holder.identity, holder.fingerprint["oid"]))
    return tuple(sorted(places - {_place(now, table.oid)}))


def moved(before: Identity, now: Identity) -> bool:
    """Return whether the source's database is on another server or was made anew."""
    return (before.system, before.database) != (now.system, now.database)


def _problem(source: psycopg.Connection, now: Identity, table: Table, holder: Mark) -> str:
    """Return why the target is not this table's; empty where it is."""
    before = holder.identity
    name = before.name
    if not name and before.system == now.system:
        # Watermarks of earlier versions lack the name; a database that was dropped has none.
        found = source.execute(_NAME, [before.database]).fetchone()
        name = found[0] if found else ""
    database = f" of the database {name} (server {before.system})" if name else ""
    if holder.source_table != str(table.name):
        return f"holds {holder.source_table}{database}, not {table.name}."
    if not moved(before, now):
        return ""
    if name and name != now.name:
        return f"holds {holder.source_table}{database}, not that of {now.name}."
    if _place(now, table.oid) in before.former:
        return (
            f"was synced from this server before, and from another one since (server "
            f"{before.system}, database {name}). Two sources that take turns would each remove "
            "the other's rows."
        )
    return ""


def _place(identity: Identity, table_oid: int) -> str:
    # With the table's oid: a restore into the former server makes another table there.
    return f"{identity.system}/{identity.database}/{table_oid}"
