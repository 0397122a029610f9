"""The catalog of a lake in Postgres, read past DuckDB: snapshots, commits, files, the commit lock.

The tables are DuckLake's, format 1.0. Nothing is written to them here; one index is added.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

import psycopg
from psycopg import sql

from replica_platform.core.postgres import connect, one_row, one_value
from replica_platform.core.reports import ReportFields
from replica_platform.lake.definition import Lake
from replica_platform.lake.errors import LakeUnavailable

# The space of advisory locks of lakes; the second key is the hash of the schema.
LOCK_SPACE = 0x4C4B
LOCK_WAIT_S = 120
# What marks a commit as one of `write`, in the column that DuckLake leaves to its users.
TOKEN = "replica_platform:"

_EXISTS = "select to_regclass(%s) is not null"
_LOCK = "select pg_advisory_xact_lock(%s, hashtext(%s))"
# Under this index a commit that is sent a second time cannot succeed a second time.
INDEX = "replica_platform_commits"
_INDEX = """
create unique index if not exists replica_platform_commits
on {schema}.ducklake_snapshot_changes (commit_extra_info)
where starts_with(commit_extra_info, 'replica_platform:')
"""
_COMMIT = "select snapshot_id from {schema}.ducklake_snapshot_changes where commit_extra_info = %s"
_NEWEST = """
select snapshot_id, snapshot_time from {schema}.ducklake_snapshot
order by snapshot_id desc limit 1
"""
# Made with the lake, and never changed.
_IDENTITY = "select schema_uuid::text from {schema}.ducklake_schema where schema_id = 0 limit 1"
_DATA_PATH = "select value from {schema}.ducklake_metadata where key = 'data_path'"
_LAKES = """
select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relname = 'ducklake_metadata' and c.relkind = 'r' order by 1
"""
_COUNTS = """
select
    (select count(*) from {schema}.ducklake_snapshot),
    (select min(snapshot_time) from {schema}.ducklake_snapshot),
    (select count(*) from {schema}.ducklake_table where end_snapshot is null),
    (select count(*) from {schema}.ducklake_data_file where end_snapshot is null),
    (select coalesce(sum(file_size_bytes), 0)::bigint from {schema}.ducklake_data_file
        where end_snapshot is null),
    (select count(*) from {schema}.ducklake_delete_file where end_snapshot is null),
    (select count(*) from {schema}.ducklake_files_scheduled_for_deletion)
"""
# Of a table that was renamed there are several rows; its folder stays the same.
_FILES = """
with place as (
    select distinct on (t.table_id) t.table_id,
        case when t.path_is_relative
            then case when s.path_is_relative then %(data)s || s.path else s.path end || t.path
            else t.path end as folder
    from {schema}.ducklake_table t join {schema}.ducklake_schema s using (schema_id)
    order by t.table_id, t.begin_snapshot desc, s.begin_snapshot desc
)
select case when path_is_relative then folder || path else path end
from (
    select table_id, path, path_is_relative from {schema}.ducklake_data_file
    union all
    select table_id, path, path_is_relative from {schema}.ducklake_delete_file
) file join place using (table_id)
"""
_SCHEDULED = """
select case when path_is_relative then %(data)s || path else path end
from {schema}.ducklake_files_scheduled_for_deletion
"""
# What a table is made of at a snapshot: the same text, the same rows. Rows that are kept in the
# catalog itself are not told apart, so that such a table has none.
_TABLES = """
select s.schema_name, t.table_name, case when exists (
        select from {schema}.ducklake_inlined_data_tables i where i.table_id = t.table_id
    ) then null else md5(concat_ws(';', t.table_uuid,
        (select string_agg(concat_ws(',', data_file_id), ' ' order by data_file_id)
            from {schema}.ducklake_data_file f where f.table_id = t.table_id
            and f.begin_snapshot <= %(at)s and coalesce(f.end_snapshot > %(at)s, true)),
        (select string_agg(concat_ws(',', delete_file_id), ' ' order by delete_file_id)
            from {schema}.ducklake_delete_file f where f.table_id = t.table_id
            and f.begin_snapshot <= %(at)s and coalesce(f.end_snapshot > %(at)s, true)),
        (select string_agg(concat_ws(',', column_id, column_order, column_name, column_type,
                parent_column, initial_default), ' ' order by column_id)
            from {schema}.ducklake_column c where c.table_id = t.table_id
            and c.begin_snapshot <= %(at)s and coalesce(c.end_snapshot > %(at)s, true))
    )) end
from {schema}.ducklake_table t join {schema}.ducklake_schema s using (schema_id)
where t.begin_snapshot <= %(at)s and coalesce(t.end_snapshot > %(at)s, true)
    and s.begin_snapshot <= %(at)s and coalesce(s.end_snapshot > %(at)s, true)
order by 1, 2
"""


@dataclass(frozen=True)
class Snapshot(ReportFields):
    """A state of all tables of a lake.

    Attributes:
        number: Its number; a later commit has a larger one.
        at: When it was committed.
    """

    number: int
    at: datetime


@dataclass(frozen=True)
class LakeTable:
    """A table at a snapshot.

    Attributes:
        schema: Its schema.
        name: Its name.
        content: A text that is the same for the same rows and columns; None if that is unknown.
    """

    schema: str
    name: str
    content: str | None


class Catalog:
    """A connection to the catalog of a lake.

    Args:
        lake: The lake.

    Raises:
        CannotConnect: The catalog's server does not answer.
    """

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._connection = self._connect()

    def __enter__(self) -> "Catalog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def exists(self) -> bool:
        """Return whether the lake was made."""
        return self._is_there("ducklake_snapshot")

    def is_ready(self) -> bool:
        """Return whether the lake was made, with the index that `make_ready` adds."""
        return self._is_there(INDEX)

    def make_ready(self) -> None:
        """Add the index that lets no commit succeed twice."""
        self._run(_INDEX)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let no other writer of this lake commit meanwhile.

        The lock belongs to a transaction, so that a pooler that shares sessions keeps it too. If
        it is lost with its connection, DuckLake's own detection of conflicts is left.

        Raises:
            LakeUnavailable: Others held it for two minutes, or the server did not answer.
        """
        with self._translated(), (connection := self._alive()).transaction():
            connection.execute(f"set local lock_timeout = '{LOCK_WAIT_S}s'")
            try:
                connection.execute(_LOCK, [LOCK_SPACE, self.lake.schema])
            except psycopg.errors.LockNotAvailable:
                raise LakeUnavailable(
                    f"Other writers of the lake {self.lake.schema} kept its commit lock for "
                    f"{LOCK_WAIT_S} s; see pg_stat_activity for a session that hangs, and try "
                    "again."
                ) from None
            yield

    def commit_of(self, token: str) -> int | None:
        """Return the snapshot of the commit with this token; None if there is none."""
        row = self._run(_COMMIT, [token]).fetchone()
        return row[0] if row else None

    def newest(self) -> Snapshot:
        """Return the newest snapshot of a lake that exists."""
        return Snapshot(*one_row(self._run(_NEWEST)))

    def identity(self) -> str:
        """Return what tells this lake from one that is made in its place later."""
        return str(one_value(self._run(_IDENTITY)))

    def tables(self, snapshot: int) -> list[LakeTable]:
        """Return the tables at a snapshot, by schema and name."""
        return [LakeTable(*row) for row in self._run(_TABLES, {"at": snapshot})]

    def files(self) -> set[str]:
        """Return the paths of all files that a kept snapshot needs."""
        return {row[0] for row in self._run(_FILES, {"data": self.data_path()})}

    def scheduled(self) -> set[str]:
        """Return the paths of the files that wait for their removal."""
        return {row[0] for row in self._run(_SCHEDULED, {"data": self.data_path()})}

    def counts(self) -> tuple[Any, ...]:
        """Return the figures of `LakeStatus`, as `_COUNTS` lists them."""
        return one_row(self._run(_COUNTS))

    def data_path(self) -> str:
        """Return where the catalog has the data."""
        return str(one_value(self._run(_DATA_PATH)))

    def others_data(self) -> dict[str, str]:
        """Return by schema where the other lakes of this database have their data.

        Those whose catalog this user may not read are left out.
        """
        found: dict[str, str] = {}
        for (schema,) in self._run(_LAKES).fetchall():
            if schema != self.lake.schema:
                try:
                    found[schema] = str(one_value(self._run(_DATA_PATH, schema=schema)))
                except (LookupError, psycopg.errors.InsufficientPrivilege):
                    continue
        return found

    def _is_there(self, relation: str) -> bool:
        name = sql.Identifier(self.lake.schema, relation).as_string()
        return bool(one_value(self._run(_EXISTS, [name])))

    def _run(
        self, statement: str, values: Any = None, *, schema: str | None = None
    ) -> psycopg.Cursor[Any]:
        name = sql.Identifier(schema or self.lake.schema)
        with self._translated():
            return self._alive().execute(
                sql.SQL(statement).format(schema=name),
                values,
            )

    def _alive(self) -> psycopg.Connection:
        """Return the connection, or a new one after it was cut."""
        if self._connection.closed:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> psycopg.Connection:
        return connect(self.lake.catalog, autocommit=True)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.OperationalError as error:
            cause = self.lake.masked(" ".join(str(error).split()).rstrip("."))
            raise LakeUnavailable(
                f"The catalog of the lake {self.lake.schema} does not answer: {cause}; try again."
            ) from None
