"""Staged rows into the target table: by MERGE, or by changing the whole content.

Statements that write rows belong here; they run in the caller's transaction, with the mark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from replica_platform.xmin.errors import CannotSync
from replica_platform.xmin.names import TableName, columns_sql
from replica_platform.xmin.target.tables import CTID, XMIN


@dataclass(frozen=True)
class Written:
    """Rows that a write touched."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0


@dataclass(frozen=True)
class Shape:
    """What the writing statements need to know of a target table."""

    target: TableName
    staging: TableName
    columns: Sequence[str]
    """Columns to write."""
    key: Sequence[str]
    fixed: frozenset[str] = frozenset()
    """Columns that an UPDATE may not set."""
    casts: Mapping[str, str] = field(default_factory=dict)
    """Columns that are wider in the target, with its types: images of different types differ."""
    scope: sql.Composable = field(default_factory=lambda: sql.SQL("true"))
    """Of `replace_all`: the target's rows that the staged ones stand for."""


_LOW32_DIFFERS = sql.SQL(
    "(t.source_xmin & 4294967295) is distinct from (s.source_xmin & 4294967295)"
)


def merge(connection: psycopg.Connection, shape: Shape, *, trust_xmin: bool | None) -> Written:
    """Merge the staged rows by key; equal rows are not written, so that a replay writes nothing.

    With `trust_xmin` rows of the same xmin are equal (its epoch, which is computed, is not
    looked at); without, the whole rows are compared as well, byte by byte; None is for tables
    that have no xmin at all.
    """
    guard: sql.Composable = _LOW32_DIFFERS
    if trust_xmin is None:
        guard = sql.SQL("false")
    if not trust_xmin:
        compared = [name for name in shape.columns if name not in (XMIN, CTID)]
        # *<> compares images: it needs no equality operator and tells 1.0 from 1.00.
        guard = sql.SQL("({} or row({})::record *<> row({})::record)").format(
            guard, columns_sql(compared, "t"), _staged(compared, shape.casts)
        )
    statement = _merge(shape, guard)
    if connection.info.server_version >= 170000:
        counted = sql.SQL(
            "with merged as ({} returning merge_action() as did) "
            "select count(*) filter (where did = 'INSERT'), count(*) filter (where did = 'UPDATE') "
            "from merged"
        )
        row = connection.execute(counted.format(statement)).fetchone()
        assert row is not None
        return Written(inserted=row[0], updated=row[1])
    # An older MERGE tells one number only: the new keys are counted before.
    new = connection.execute(
        sql.SQL(
            "select count(*) from {staging} s where not exists (select from {target} t where {on})"
        ).format(staging=shape.staging.sql, target=shape.target.sql, on=_on(shape))
    ).fetchone()
    inserted = int(new[0]) if new else 0
    return Written(inserted=inserted, updated=connection.execute(statement).rowcount - inserted)


def _merge(shape: Shape, guard: sql.Composable) -> sql.Composed:
    settable = [name for name in shape.columns if name not in shape.fixed]
    assignments = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Identifier("s", name))
        for name in settable
    )
    return sql.SQL(
        "merge into {target} t using {staging} s on {on} "
        "when matched and {guard} then update set {assignments} "
        "when not matched then insert ({columns}) overriding system value values ({values})"
    ).format(
        target=shape.target.sql,
        staging=shape.staging.sql,
        on=_on(shape),
        guard=guard,
        assignments=assignments,
        columns=columns_sql(list(shape.columns)),
        values=columns_sql(list(shape.columns), "s"),
    )


def replace_all(connection: psycopg.Connection, shape: Shape) -> Written:
    """Make the target's rows those that are staged; readers see the old rows or the new ones.

    In place and in one transaction rather than by a new table under the old name: grants and
    views of the target stay as they are, and a reader whose snapshot is older than the new table
    would find that one empty.
    """
    if shape.key:
        deleted = connection.execute(
            sql.SQL(
                "delete from {target} t where {scope} "
                "and not exists (select from {staging} s where {on})"
            ).format(
                target=shape.target.sql,
                scope=shape.scope,
                staging=shape.staging.sql,
                on=_on(shape),
            )
        ).rowcount
        merged = merge(connection, shape, trust_xmin=False)
        return Written(merged.inserted, merged.updated, deleted)
    return _replace_unkeyed(connection, shape)


_RANKED = """
-- Each row's place, 128 bits of its content, and which of several equal rows it is.
create temp table pg_temp.{name} on commit drop as
select leaf, place, one, two, row_number() over (partition by one, two) as nth from (
    select leaf, place, hashtextextended(image, 0) as one, hashtextextended(image, 1) as two from (
        select s.tableoid as leaf, s.ctid as place,
            row({columns}, s.source_xmin & 4294967295)::text as image
        from {table} s offset 0) i) h  -- the offset keeps the image from being made twice
"""
_SURPLUS = """
delete from {target} t using pg_temp.replica_had h
where t.tableoid = h.leaf and t.ctid = h.place and not exists (
    select from pg_temp.replica_wanted w where (w.one, w.two, w.nth) = (h.one, h.two, h.nth))
"""
_LACKING = """
insert into {target} ({columns}) overriding system value
select {staged} from {staging} s join pg_temp.replica_wanted w on s.ctid = w.place
where not exists (
    select from pg_temp.replica_had h where (h.one, h.two, h.nth) = (w.one, w.two, w.nth))
"""


def _replace_unkeyed(connection: psycopg.Connection, shape: Shape) -> Written:
    """Delete the rows that are too many and insert those that are too few, as multisets."""
    compared = [name for name in shape.columns if name not in (XMIN, CTID)]
    sides = {
        "replica_had": (shape.target, columns_sql(compared, "s")),
        "replica_wanted": (shape.staging, _staged(compared, shape.casts)),
    }
    for name, (table, columns) in sides.items():
        listed = columns if compared else sql.SQL("null")
        ranked = sql.SQL(_RANKED).format(name=sql.Identifier(name), columns=listed, table=table.sql)
        connection.execute(ranked)
        connection.execute(sql.SQL("analyze pg_temp.{}").format(sql.Identifier(name)))
    # In this order, for a unique index that somebody has made on the target.
    deleted = connection.execute(sql.SQL(_SURPLUS).format(target=shape.target.sql)).rowcount
    lacking = sql.SQL(_LACKING).format(
        target=shape.target.sql,
        staging=shape.staging.sql,
        columns=columns_sql(list(shape.columns)),
        staged=columns_sql(list(shape.columns), "s"),
    )
    inserted = connection.execute(lacking).rowcount
    connection.execute("drop table pg_temp.replica_had, pg_temp.replica_wanted")
    return Written(inserted=inserted, deleted=deleted)


def _staged(columns: Sequence[str], casts: Mapping[str, str]) -> sql.Composed:
    parts: list[sql.Composable] = []
    for name in columns:
        column: sql.Composable = sql.Identifier("s", name)
        if name in casts:
            column = sql.SQL("{}::{}").format(column, sql.SQL(casts[name]))
        parts.append(column)
    return sql.SQL(", ").join(parts)


def _on(shape: Shape) -> sql.Composed:
    if not shape.key:
        raise CannotSync(f"{shape.target} has no key to merge by.")
    return sql.SQL(" and ").join(
        sql.SQL("t.{0} = s.{0}").format(sql.Identifier(name)) for name in shape.key
    )
