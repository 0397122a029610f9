"""A snapshot of a lake as tables of a DuckDB file, which is then published like any master.

One transaction reads one snapshot. Only tables that differ from the last export are copied. The
file says in its schema `lake_export` which snapshot it holds, also to readers of a generation.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime

import duckdb

from replica_platform.core.reports import DoneReport
from replica_platform.lake.catalog import Catalog, LakeTable, Snapshot
from replica_platform.lake.definition import Lake, bucket_options
from replica_platform.lake.errors import LakeMissing, WrongLake
from replica_platform.lake.session import attach, identifier, literal, translated

# The schema of what the file says of itself.
SCHEMA = "lake_export"
AS_OF = f"select committed_at from {SCHEMA}.snapshot"
# Settings of a bucket that are called otherwise than the option of a secret.
_SETTINGS = {"key_id": "access_key_id", "secret": "secret_access_key"}
_TABLES = """
select schema_name, table_name from duckdb_tables()
where database_name = current_database() and not temporary
"""


@dataclass(frozen=True)
class Exported:
    """What a file holds.

    Attributes:
        lake: The identity of the lake.
        snapshot: The snapshot's number.
        committed_at: When it was committed.
    """

    lake: str
    snapshot: int
    committed_at: datetime


@dataclass(frozen=True)
class Export(DoneReport):
    """An export.

    Attributes:
        snapshot: The snapshot that the file holds now.
        committed_at: When it was committed.
        tables: How many tables it has.
        copied: The tables that were copied, `schema.table`; the others had not changed.
        dropped: The tables that were dropped.
    """

    snapshot: int
    committed_at: datetime
    tables: int
    copied: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What was exported."""
        return (
            f"Snapshot {self.snapshot} has {self.tables} tables; {len(self.copied)} were copied, "
            f"{len(self.dropped)} dropped, the others had not changed."
        )


def pending(lake: Lake, connection: duckdb.DuckDBPyConnection | None) -> int | None:
    """Return the number of the newest snapshot if a file does not hold it; None if it does.

    Args:
        lake: The lake.
        connection: A connection to the file; None if there is none yet.

    Raises:
        CannotConnect: The catalog's server does not answer.
        LakeMissing: There is no lake.
    """
    known = exported(connection) if connection else None
    with Catalog(lake) as catalog:
        _assert_exists(catalog)
        newest = catalog.newest().number
        same = known is not None and (known.lake, known.snapshot) == (catalog.identity(), newest)
    return None if same else newest


def exported(connection: duckdb.DuckDBPyConnection) -> Exported | None:
    """Return what a DuckDB file holds of a lake; None for a file that was not exported.

    Args:
        connection: A connection to the file.
    """
    if (SCHEMA, "snapshot") not in connection.execute(_TABLES).fetchall():
        return None
    row = connection.execute(f"from {SCHEMA}.snapshot").fetchone()
    return Exported(*row) if row else None


def export(
    lake: Lake, connection: duckdb.DuckDBPyConnection, *, new_lineage: bool = False
) -> Export:
    """Make the tables of a DuckDB file those of the lake's newest snapshot.

    A file that holds that snapshot already is only read.

    Args:
        lake: The lake.
        connection: A connection to the file, in a transaction that the caller commits.
        new_lineage: Accept a lake that was made anew, or that has lost its newest snapshots.

    Returns:
        What was copied.

    Raises:
        CannotConnect: The catalog's server does not answer.
        LakeMissing: There is no lake.
        LakeUnavailable: The catalog or the data does not answer.
        WrongLake: The file is of another lake, or not of a lake; or its snapshot is newer.
    """
    with Catalog(lake) as catalog:
        _assert_exists(catalog)
        newest = catalog.newest()
        identity = catalog.identity()
        tables = catalog.tables(newest.number)
    known = exported(connection)
    if known == Exported(identity, newest.number, newest.at):
        return Export(newest.number, newest.at, len(tables))
    _assert_successor(lake, connection, known, newest, identity, new_lineage)
    if any(table.schema == SCHEMA for table in tables):
        raise WrongLake(
            f"The lake {lake.schema} has a schema {SCHEMA}, which an export needs for itself; "
            "rename it."
        )
    before = _contents(connection) if known and known.lake == identity else {}
    changed = [
        table
        for table in tables
        if table.content is None or before.get((table.schema, table.name)) != table.content
    ]
    there = {(schema, name) for schema, name in connection.execute(_TABLES).fetchall()}
    gone = {one for one in there if one[0] != SCHEMA} - {(one.schema, one.name) for one in tables}
    for schema, name in sorted(gone):
        connection.execute(f"drop table {_qualified(schema, name)}")
    with translated(lake, newest.number):
        _copy(lake, connection, changed, newest.number)
    _describe(connection, identity, newest, tables)
    return Export(
        newest.number,
        newest.at,
        len(tables),
        tuple(f"{one.schema}.{one.name}" for one in changed),
        tuple(f"{schema}.{name}" for schema, name in sorted(gone)),
    )


def _assert_exists(catalog: Catalog) -> None:
    if not catalog.exists():
        raise LakeMissing(
            f"There is no lake in the schema {catalog.lake.schema} of the catalog yet; its first "
            "write makes it (`LakeWriter`), or correct the name."
        )


def _assert_successor(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    known: Exported | None,
    newest: Snapshot,
    identity: str,
    new_lineage: bool,
) -> None:
    if known is None:
        if connection.execute(_TABLES).fetchone():
            raise WrongLake(
                f"The file that the lake {lake.schema} is exported to has tables of its own, which "
                "the export would drop; name another file."
            )
        return
    if new_lineage:
        return
    if known.lake != identity:
        raise WrongLake(
            f"The lake {lake.schema} is not the one that was exported before: it was made anew, or "
            "the catalog is another one. Correct the catalog, or export with new_lineage."
        )
    if known.snapshot > newest.number:
        raise WrongLake(
            f"The lake {lake.schema} is at snapshot {newest.number}, and {known.snapshot} was "
            "exported before: its catalog was restored. Export with new_lineage to accept that."
        )


def _contents(connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], str | None]:
    rows = connection.execute(f"from {SCHEMA}.tables").fetchall()
    return {(schema, name): content for schema, name, content in rows}


def _copy(
    lake: Lake, connection: duckdb.DuckDBPyConnection, tables: list[LakeTable], at: int
) -> None:
    if not tables:
        return
    name = f"lake_{secrets.token_hex(4)}"
    # Beside the transaction of the caller, in which a new secret would not be seen.
    with connection.cursor() as beside:
        attach(beside, lake, name, at=at)
    with _bucket_settings(connection) if lake.in_bucket else nullcontext():
        for table in tables:
            copy = _qualified(table.schema, table.name)
            connection.execute(f"create schema if not exists {identifier(table.schema)}")
            connection.execute(f"create or replace table {copy} as from {identifier(name)}.{copy}")


@contextmanager
def _bucket_settings(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Let the files of a bucket be read by settings: the secret is not seen in this transaction."""
    for name, value in bucket_options().items():
        connection.execute(f"set s3_{_SETTINGS.get(name, name)} = {literal(value)}")
    try:
        yield
    finally:
        for name in bucket_options():
            connection.execute(f"reset s3_{_SETTINGS.get(name, name)}")


def _describe(
    connection: duckdb.DuckDBPyConnection,
    identity: str,
    newest: Snapshot,
    tables: list[LakeTable],
) -> None:
    connection.execute(f"create schema if not exists {SCHEMA}")
    connection.execute(
        f"create or replace table {SCHEMA}.snapshot as "
        "select ?::varchar as lake, ?::bigint as snapshot, ?::timestamptz as committed_at",
        [identity, newest.number, newest.at],
    )
    connection.execute(
        f"create or replace table {SCHEMA}.tables "
        "(schema_name varchar, table_name varchar, content varchar)"
    )
    for table in tables:
        connection.execute(
            f"insert into {SCHEMA}.tables values (?, ?, ?)",
            [table.schema, table.name, table.content],
        )


def _qualified(schema: str, name: str) -> str:
    return f"{identifier(schema)}.{identifier(name)}"
