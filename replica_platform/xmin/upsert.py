"""A data frame into a target table: keyed, guarded, and free of writes when nothing differs.

For assets that compute rows instead of syncing them; tables made here carry no xmin.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import psycopg
from psycopg import sql

from replica_platform.xmin.errors import CannotSync
from replica_platform.xmin.names import TableName, columns_sql
from replica_platform.xmin.session import in_words, open_target
from replica_platform.xmin.target import apply
from replica_platform.xmin.target import tables as target


class Frame(Protocol):
    """What is needed of a pandas DataFrame."""

    @property
    def columns(self) -> Iterable[Any]: ...
    @property
    def dtypes(self) -> Iterable[Any]: ...
    def itertuples(self, index: bool = ..., name: str | None = ...) -> Iterable[Any]: ...


@dataclass(frozen=True)
class MergeReport:
    """What one merge did."""

    target_table: str
    rows: int
    rows_inserted: int
    rows_updated: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The same, plain."""
        return asdict(self)


def merge_frame(target_dsn: str, table: str, frame: Frame, key: Sequence[str]) -> MergeReport:
    """Merge the rows of `frame` (its columns, without its index) into `table` by `key`.

    The table is made when absent, with types after the frame's; its columns may be more.
    Missing values (None, NaN in a column of objects, NaT) arrive as NULL. Errors: `CannotSync`
    for a key that is not in the frame or not unique in it.
    """
    began = time.monotonic()
    name = TableName.parse(table)
    columns = [str(column) for column in frame.columns]
    absent = [column for column in key if column not in columns]
    if absent or not key:
        raise CannotSync(f"The key of {name} needs columns of the frame: {', '.join(columns)}.")
    kinds = [_type(dtype) for dtype in frame.dtypes]
    with open_target(target_dsn) as home, in_words("target", str(name)), home.transaction():
        found = target.look(home, [name]).get(name)
        if found is None:
            _create(home, name, columns, kinds, key)
            found = target.look(home, [name])[name]
        _match(name, found, columns)
        stage = TableName("pg_temp", "replica_frame")
        types = [found.columns[column].type for column in columns]
        _create_stage(home, stage, columns, types)
        rows = _load(home, stage, columns, frame)
        _unique(home, stage, key, name)
        fixed = frozenset(target.never_set(found))
        shape = apply.Shape(name, stage, columns, list(key), fixed)
        written = apply.merge(home, shape, trust_xmin=None)
        home.execute(sql.SQL("drop table {}").format(stage.sql))
    return MergeReport(str(name), rows, written.inserted, written.updated, time.monotonic() - began)


def read_rows(target_dsn: str, table: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The columns of `table` and all its rows, for a frame that fits in memory."""
    name = TableName.parse(table)
    with open_target(target_dsn) as home, in_words("target", str(name)):
        found = home.execute(sql.SQL("select * from {}").format(name.sql))
        return [column.name for column in found.description or []], found.fetchall()


def _type(dtype: Any) -> str:
    text = str(dtype).lower()
    for start, kind in (
        ("int", "bigint"),
        ("uint", "bigint"),
        ("float", "double precision"),
        ("bool", "boolean"),
    ):
        if text.startswith(start):
            return kind
    if text.startswith("datetime64"):
        return "timestamptz" if "," in text else "timestamp"
    return "text"


def _create(
    home: psycopg.Connection,
    name: TableName,
    columns: Sequence[str],
    kinds: Sequence[str],
    key: Sequence[str],
) -> None:
    target.make_schema(home, name.schema)
    home.execute(
        sql.SQL("create table {} ({}, primary key ({}))").format(
            name.sql, _definitions(columns, kinds), columns_sql(list(key))
        )
    )


def _create_stage(
    home: psycopg.Connection, stage: TableName, columns: Sequence[str], kinds: Sequence[str]
) -> None:
    home.execute(
        sql.SQL("create temp table {} ({}) on commit drop").format(
            stage.sql, _definitions(columns, kinds)
        )
    )


def _definitions(columns: Sequence[str], kinds: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind))
        for column, kind in zip(columns, kinds, strict=True)
    )


def _match(name: TableName, found: target.Target, columns: Sequence[str]) -> None:
    unknown = [column for column in columns if column not in found.columns]
    if unknown:
        raise CannotSync(
            f"{name} has no column {', '.join(unknown)}; add it to the table or drop it from the "
            "frame."
        )


def _load(home: psycopg.Connection, stage: TableName, columns: Sequence[str], frame: Frame) -> int:
    rows = 0
    command = sql.SQL("copy {} ({}) from stdin").format(stage.sql, columns_sql(list(columns)))
    with home.cursor() as cursor, cursor.copy(command) as copy:
        for row in frame.itertuples(index=False, name=None):
            copy.write_row([_plain(value) for value in row])
            rows += 1
    return rows


def _plain(value: Any) -> Any:
    """NULL for a missing value; Python's own type for numpy's and pandas'."""
    if value is None or type(value).__name__ in ("NaTType", "NAType"):
        return None
    if hasattr(value, "to_pydatetime"):
        return value.to_pydatetime()
    if hasattr(value, "item") and hasattr(value, "dtype"):
        value = value.item()
    # pandas has no other sign for "no value" in columns of numbers.
    return None if isinstance(value, float) and value != value else value


def _unique(
    home: psycopg.Connection, stage: TableName, key: Sequence[str], name: TableName
) -> None:
    columns = columns_sql(list(key))
    twice = home.execute(
        sql.SQL("select row({})::text from {} group by {} having count(*) > 1 limit 1").format(
            columns, stage.sql, columns
        )
    ).fetchone()
    if twice:
        raise CannotSync(f"The frame for {name} has the key {twice[0]} more than once.")
