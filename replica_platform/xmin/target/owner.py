"""The owner of a target table: the one source table that its watermark names.

Whether a sync may write to the target is decided here; how it then reads is `decide`'s.
"""

import psycopg

from replica_platform.xmin.errors import TargetTaken
from replica_platform.xmin.names import TableName
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.source.snapshot import Identity
from replica_platform.xmin.target.watermark import Watermark

_DATABASE_NAME = "select datname from pg_database where oid = %s"


def check_owner(
    source: psycopg.Connection,
    now: Identity,
    table: SourceTable,
    target: TableName,
    watermark: Watermark | None,
    *,
    take_over: bool = False,
) -> bool:
    """Return whether a sync of `table` takes the target over from another owner.

    The owner is a table of one schema and name in one database. A database is the same where its
    server and oid are, or its name: a restore and a major upgrade change the system identifier
    and keep the names, so the sync continues there without a person's help.

    Args:
        source: A session on the source.
        now: The source's identity.
        table: The source table.
        target: The target table.
        watermark: The target table's watermark, which names its owner.
        take_over: Whether the target may be taken from its owner.

    Raises:
        TargetTaken: The target has another owner, and `take_over` is not set.
    """
    problem = _problem(source, now, table, watermark) if watermark else ""
    if not problem or take_over:
        return bool(problem)
    raise TargetTaken(
        f"{target} {problem} Nothing was changed. Let {table.name} of the database {now.name} "
        f"arrive in another schema with `into`; or, if it is meant to replace the rows of "
        f"{target}, sync it once with --take-over (in Python: take_over=True)."
    )


def former_locations(
    watermark: Watermark | None, now: Identity, table: SourceTable
) -> tuple[str, ...]:
    """Return where the source table was on other servers, for the new watermark."""
    if watermark is None or watermark.source_table != str(table.name):
        return ()
    locations = set(watermark.identity.former)
    if moved(watermark.identity, now):
        locations.add(_location(watermark.identity, watermark.fingerprint["oid"]))
    return tuple(sorted(locations - {_location(now, table.oid)}))


def moved(before: Identity, now: Identity) -> bool:
    """Return whether the source's database is on another server or was created again."""
    return (before.system, before.database) != (now.system, now.database)


def _problem(
    source: psycopg.Connection, now: Identity, table: SourceTable, watermark: Watermark
) -> str:
    """Return why the target belongs to another table; empty where it does not."""
    before = watermark.identity
    name = before.name or _name_by_oid(source, before, now)
    database = f" of the database {name} (server {before.system})" if name else ""
    if watermark.source_table != str(table.name):
        return f"holds {watermark.source_table}{database}, not {table.name}."
    if not moved(before, now):
        return ""
    if name and name != now.name:
        return f"holds {watermark.source_table}{database}, not that of {now.name}."
    if _location(now, table.oid) in before.former:
        return (
            f"was synced from this server before, and from another one since (server "
            f"{before.system}, database {name}). Two sources that take turns would each remove "
            "the other's rows."
        )
    return ""


def _name_by_oid(source: psycopg.Connection, before: Identity, now: Identity) -> str:
    """Return the name of a database whose watermark does not keep it; empty where unknown."""
    if before.system != now.system:
        return ""
    found = source.execute(_DATABASE_NAME, [before.database]).fetchone()
    return str(found[0]) if found else ""


def _location(identity: Identity, table_oid: int) -> str:
    # With the table's oid: a restore into the former server creates another table there.
    return f"{identity.system}/{identity.database}/{table_oid}"
