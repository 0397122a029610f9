"""A data frame written into a target table by key; rows that are equal are not written.

For assets that compute rows instead of syncing them; tables created here carry no xmin.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from psycopg import sql

from replica_platform.core.reports import DoneReport
from replica_platform.xmin.errors import CannotSync, translate_errors
from replica_platform.xmin.names import TableName, columns_sql
from replica_platform.xmin.session import open_target
from replica_platform.xmin.target import write
from replica_platform.xmin.target.schemas import create_schema
from replica_platform.xmin.target.tables import TargetTable, column_definition, inspect

_STAGING = TableName("pg_temp", "replica_frame")
_TYPES = (
    ("int", "bigint"),
    ("uint", "bigint"),
    ("float", "double precision"),
    ("bool", "boolean"),
)


class Frame(Protocol):
    """The part of a pandas DataFrame that is used."""

    @property
    def columns(self) -> Iterable[Any]:
        """The columns' names."""

    @property
    def dtypes(self) -> Iterable[Any]:
        """The columns' types."""

    def itertuples(self, index: bool = ..., name: str | None = ...) -> Iterable[Any]:
        """Return the rows."""


@dataclass(frozen=True)
class MergeReport(DoneReport):
    """What one merge of a data frame did.

    Attributes:
        target_table: The target table.
        rows: Rows of the frame.
        rows_inserted: Rows new in the target.
        rows_updated: Rows changed in the target.
        seconds: How long it took.
    """

    target_table: str
    rows: int
    rows_inserted: int
    rows_updated: int
    seconds: float

    @property
    def sentence(self) -> str:
        """What was done."""
        return (
            f"{self.target_table}: {self.rows_inserted:,} of {self.rows:,} rows inserted, "
            f"{self.rows_updated:,} updated in {self.seconds:.1f} s."
        )


def merge_frame(target_dsn: str, table: str, frame: Frame, key: Sequence[str]) -> MergeReport:
    """Merge the rows of a data frame into a target table by key.

    The table is created when absent, with types after the frame's. It may have more columns.

    Args:
        target_dsn: The DSN of the target.
        table: The target table, `schema.table` as psql reads it.
        frame: A DataFrame; its index is left out. Missing values (None, NaN, NaT) arrive as NULL.
        key: The columns that rows are matched by.

    Returns:
        How many rows were written.

    Raises:
        CannotSync: The key is not in the frame or not unique in it, or the table lacks a column.
        TargetInterrupted: The target ended the write; nothing was changed.
    """
    began = time.monotonic()
    name = TableName.parse(table)
    columns = dict(zip(map(str, frame.columns), map(_type, frame.dtypes), strict=True))
    if not key or any(column not in columns for column in key):
        raise CannotSync(f"The key of {name} needs columns of the frame: {', '.join(columns)}.")
    with open_target(target_dsn) as target, translate_errors("target", name), target.transaction():
        found = inspect(target, [name]).get(name)
        if found is None:
            _create(target, name, columns, key)
            found = inspect(target, [name])[name]
        _refuse_unknown(name, found, columns)
        _create_staging(target, {column: found.columns[column].type for column in columns})
        rows = _load(target, list(columns), frame)
        _refuse_duplicates(target, key, name)
        spec = write.WriteSpec(name, _STAGING, list(columns), list(key), found.always_identity)
        written = write.merge(target, spec, write.Equality.CONTENT)
        target.execute(sql.SQL("drop table {}").format(_STAGING.sql))
    return MergeReport(str(name), rows, written.inserted, written.updated, time.monotonic() - began)


def read_rows(target_dsn: str, table: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Read a whole target table, for a frame that fits in memory.

    Args:
        target_dsn: The DSN of the target.
        table: The target table, `schema.table` as psql reads it.

    Returns:
        The names of the columns, and all rows.

    Raises:
        CannotSync: The target refused the query, because it has no such table for example.
        TargetInterrupted: The target ended the read.
    """
    name = TableName.parse(table)
    with open_target(target_dsn) as target, translate_errors("target", name):
        found = target.execute(sql.SQL("select * from {}").format(name.sql))
        return [column.name for column in found.description or []], found.fetchall()


def _type(dtype: Any) -> str:
    """Return the Postgres type for a type of a frame."""
    text = str(dtype).lower()
    for start, kind in _TYPES:
        if text.startswith(start):
            return kind
    if text.startswith("datetime64"):
        return "timestamptz" if "," in text else "timestamp"
    return "text"


def _create(
    target: psycopg.Connection, name: TableName, columns: dict[str, str], key: Sequence[str]
) -> None:
    create_schema(target, name.schema)
    target.execute(
        sql.SQL("create table {} ({}, primary key ({}))").format(
            name.sql, _definitions(columns), columns_sql(key)
        )
    )


def _create_staging(target: psycopg.Connection, columns: dict[str, str]) -> None:
    target.execute(
        sql.SQL("create temp table {} ({}) on commit drop").format(
            _STAGING.sql, _definitions(columns)
        )
    )


def _definitions(columns: dict[str, str]) -> sql.Composed:
    return sql.SQL(", ").join(column_definition(*column) for column in columns.items())


def _refuse_unknown(name: TableName, found: TargetTable, columns: Iterable[str]) -> None:
    unknown = [column for column in columns if column not in found.columns]
    if unknown:
        raise CannotSync(
            f"{name} has no column {', '.join(unknown)}; add it to the table or drop it from the "
            "frame."
        )


def _load(target: psycopg.Connection, columns: Sequence[str], frame: Frame) -> int:
    rows = 0
    command = sql.SQL("copy {} ({}) from stdin").format(_STAGING.sql, columns_sql(columns))
    with target.cursor() as cursor, cursor.copy(command) as copy:
        for row in frame.itertuples(index=False, name=None):
            copy.write_row([_plain(value) for value in row])
            rows += 1
    return rows


def _plain(value: Any) -> Any:
    """Return None for a missing value, and Python's own type for numpy's and pandas'."""
    if value is None or type(value).__name__ in ("NaTType", "NAType"):
        return None
    if hasattr(value, "to_pydatetime"):
        return value.to_pydatetime()
    if hasattr(value, "item") and hasattr(value, "dtype"):
        value = value.item()
    # pandas has no other sign for "no value" in columns of numbers.
    return None if isinstance(value, float) and value != value else value


def _refuse_duplicates(target: psycopg.Connection, key: Sequence[str], name: TableName) -> None:
    columns = columns_sql(key)
    twice = target.execute(
        sql.SQL("select row({})::text from {} group by {} having count(*) > 1 limit 1").format(
            columns, _STAGING.sql, columns
        )
    ).fetchone()
    if twice:
        raise CannotSync(f"The frame for {name} has the key {twice[0]} more than once.")
