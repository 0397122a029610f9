"""The target's tables: made when absent, kept in step when the source's columns change.

Definitions belong here; rows are `apply`'s. Everything runs in the caller's transaction, so
that a refused change leaves nothing behind.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.xmin.errors import CannotSync, SchemaRefused
from replica_platform.xmin.names import TableName, columns_sql
from replica_platform.xmin.session import may_create
from replica_platform.xmin.source.catalog import Column, Table
from replica_platform.xmin.target.watermark import SCHEMA

XMIN, CTID = "source_xmin", "source_ctid"
OWN = {XMIN: "bigint", CTID: "tid"}

# What each type may become without losing a value; varchar and numeric are looked at below.
_WIDER = {
    "smallint": {"integer", "bigint", "numeric"},
    "integer": {"bigint", "numeric"},
    "bigint": {"numeric"},
    "real": {"double precision"},
    "character varying": {"text"},
    "character": {"text", "character varying"},
    "date": {"timestamp without time zone"},
    "json": {"text"},
}


@dataclass(frozen=True)
class TargetColumn:
    """A column that the target has."""

    type: str
    generated: bool
    always_identity: bool


@dataclass(frozen=True)
class Target:
    """A table that the target has."""

    oid: int
    kind: str
    columns: dict[str, TargetColumn]
    unique_keys: tuple[frozenset[str], ...]


_LOOK = """
select c.oid, n.nspname, c.relname, c.relkind::text,
       (select json_agg(json_build_array(a.attname, format_type(a.atttypid, a.atttypmod),
               a.attgenerated <> '', a.attidentity = 'a') order by a.attnum)
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
       (select json_agg((select json_agg(a.attname) from pg_attribute a
               where a.attrelid = c.oid and a.attnum = any(i.indkey[0:i.indnkeyatts - 1])))
        from pg_index i where i.indrelid = c.oid and i.indisunique and i.indisvalid
          and i.indpred is null and i.indexprs is null)
from unnest(%s::text[], %s::text[]) w(schema, name)
join pg_namespace n on n.nspname = w.schema
join pg_class c on c.relnamespace = n.oid and c.relname = w.name
"""


def look(connection: psycopg.Connection, names: Iterable[TableName]) -> dict[TableName, Target]:
    """The tables among `names` that the target has."""
    wanted = list(names)
    found = {}
    with connection.transaction():
        # Types are spelled as the source spells them: in full, unless built in.
        connection.execute("select set_config('search_path', '', true)")
        rows = connection.execute(
            _LOOK, [[name.schema for name in wanted], [name.table for name in wanted]]
        ).fetchall()
    for oid, schema, table, kind, columns, keys in rows:
        described = {name: TargetColumn(*rest) for name, *rest in columns or []}
        unique = tuple(frozenset(key) for key in keys or [])
        found[TableName(schema, table)] = Target(oid, kind, described, unique)
    return found


def staging_name(target: TableName, kind: str = "stage") -> TableName:
    """Where the rows for a target table wait; the same name each time, so that leftovers go."""
    digest = hashlib.sha256(str(target).encode()).hexdigest()[:16]
    return TableName(SCHEMA, f"{kind}_{digest}")


def load_name(target: TableName) -> TableName:
    """What a first copy fills, and what then becomes the target table itself."""
    return staging_name(target, "load")


def make_staging(
    connection: psycopg.Connection, name: TableName, table: Table, *, raw: bool = False
) -> None:
    """An empty UNLOGGED table with the source's columns and our two.

    With `raw` its `source_xmin` is of type xid, and gets its epoch in `adopt`.
    """
    clash = set(OWN) & set(table.names)
    if clash:
        raise CannotSync(
            f"{table.name} has a column {min(clash)} of its own, which the sync needs; "
            "rename it in the source or sync a view without it."
        )
    columns = [_definition(column.name, column.type) for column in table.columns]
    own = {**OWN, XMIN: "xid"} if raw else OWN
    columns += [_definition(column, kind) for column, kind in own.items()]
    drop(connection, name)
    connection.execute(
        sql.SQL("create unlogged table {} ({}) with (autovacuum_enabled = false)").format(
            name.sql, sql.SQL(", ").join(columns)
        )
    )


def drop(connection: psycopg.Connection, name: TableName) -> None:
    """Remove a staging table, left over or done with."""
    connection.execute(sql.SQL("drop table if exists {}").format(name.sql))


def make_schema(connection: psycopg.Connection, schema: str) -> None:
    """Make the schema when it is absent. Errors: `MissingGrant`."""
    row = connection.execute("select to_regnamespace(quote_ident(%s)) is null", [schema]).fetchone()
    if not (row and row[0]):
        return
    with may_create(connection, f"{schema!r}"), connection.transaction():
        connection.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(schema)))


def adopt(
    connection: psycopg.Connection, name: TableName, key: tuple[str, ...], epoch: sql.Composable
) -> int:
    """Make the loaded staging table the target table itself: logged, keyed, indexed; its oid.

    `epoch` is the bigint that `source_xmin` becomes.
    """
    run = connection.execute
    run("select set_config('maintenance_work_mem', '256MB', true)")
    stage = load_name(name)
    moved = TableName(name.schema, stage.table)
    run(  # one rewrite for both
        sql.SQL(
            "alter table {} set logged, reset (autovacuum_enabled), "
            "alter column source_xmin type bigint using {}"
        ).format(stage.sql, epoch)
    )
    run(sql.SQL("alter table {} set schema {}").format(stage.sql, sql.Identifier(name.schema)))
    run(sql.SQL("alter table {} rename to {}").format(moved.sql, sql.Identifier(name.table)))
    if key:
        run(sql.SQL("alter table {} add primary key ({})").format(name.sql, columns_sql(key)))
    run(_index(name, (XMIN,)))
    run(sql.SQL("analyze {}").format(name.sql))
    row = run("select %s::regclass::oid", [name.sql.as_string()]).fetchone()
    assert row is not None
    return int(row[0])


@dataclass(frozen=True)
class Change:
    """One change of the target's definition, and what it is in words (None: not worth a word)."""

    statement: sql.SQL | sql.Composed
    note: str | None = None


def changes(
    name: TableName, found: Target, table: Table, key: tuple[str, ...], added: Sequence[Column]
) -> list[Change]:
    """What brings the target's definition in step with the source's; nothing is done yet.

    New columns are added (`added` are those that all old rows hold a constant of), wider types
    taken over, dropped columns kept. Errors: `SchemaRefused`.
    """
    if found.kind not in "rp":
        raise SchemaRefused(f"{name} is in the way in the target: it is no table.")
    wanted = {column.name: column.type for column in table.columns}
    narrower = casts(table, found)
    altered = {
        n: t
        for n, t in wanted.items()
        if n in found.columns and found.columns[n].type != t and n not in narrower
    }
    refused = [
        f"{n} is {found.columns[n].type} in the target and {t} in the source"
        for n, t in altered.items()
        if not widens(found.columns[n].type, t)
    ]
    if refused:
        raise SchemaRefused(
            f"{name} cannot follow {table.name}: {'; '.join(refused)}. Nothing was changed; "
            "alter the column in the target by hand, or drop the target table to have it made anew."
        )
    constants = {column.name: column.missing for column in added}
    todo: list[Change] = []
    for column, kind in {**wanted, **OWN}.items():
        if column not in found.columns:
            note = f"column {column} {kind} was added" if column not in OWN else None
            todo += _add_column(name, column, kind, constants.get(column), note)
    for column, kind in altered.items():
        alter = sql.SQL("alter table {} alter column {} type {}").format(
            name.sql, sql.Identifier(column), _type(kind)
        )
        todo.append(Change(alter, f"column {column} was widened to {kind}"))
    for column in found.columns:
        if column not in wanted and column not in OWN:
            note = f"column {column} is no longer in the source and was kept"
            todo.append(Change(sql.SQL("select"), note))
    if XMIN not in found.columns:
        todo.append(Change(_index(name, (XMIN,))))
    if key and frozenset(key) not in found.unique_keys:
        todo.append(Change(_index(name, key, unique=True)))
    return todo


def _add_column(
    name: TableName, column: str, kind: str, constant: str | None, note: str | None
) -> list[Change]:
    add = sql.SQL("alter table {} add column {}").format(name.sql, _definition(column, kind))
    if constant is None:
        return [Change(add, note)]
    # With a default no row is touched, neither here nor when it was added to the source.
    add += sql.SQL(" default {}").format(sql.Literal(constant))
    drop = sql.SQL("alter table {} alter column {} drop default").format(
        name.sql, sql.Identifier(column)
    )
    return [Change(add, note), Change(drop)]


def _index(name: TableName, columns: Sequence[str], *, unique: bool = False) -> sql.Composed:
    return sql.SQL("create {} index on {} ({})").format(
        sql.SQL("unique" if unique else ""), name.sql, columns_sql(list(columns))
    )


def widens(old: str, new: str) -> bool:
    """Whether every value of type `old` is one of type `new`, both as `format_type` has them."""
    if old.endswith("[]") and new.endswith("[]"):
        return widens(old[:-2], new[:-2])
    old_name, old_size = _split(old)
    new_name, new_size = _split(new)
    if old_name != new_name:
        return new_name in _WIDER.get(old_name, set()) and not new_size
    if not new_size:
        return True
    if not old_size:
        return False
    if old_name == "numeric":
        (precision, scale), (wider, finer) = old_size, new_size
        return finer >= scale and wider - finer >= precision - scale
    return old_name != "character" and new_size[0] >= old_size[0]


def _split(kind: str) -> tuple[str, list[int]]:
    name, bracket, rest = kind.partition("(")
    numbers, _, tail = rest.partition(")")
    sizes = [int(number) for number in numbers.split(",")] if bracket else []
    return name.strip() + (tail if bracket else ""), sizes


def _definition(name: str, kind: str) -> sql.Composed:
    return sql.SQL("{} {}").format(sql.Identifier(name), _type(kind))


def _type(kind: str) -> sql.SQL:
    # format_type has quoted it already: it can be no parameter and no identifier.
    return sql.SQL(kind)


def casts(table: Table, found: Target | None) -> dict[str, str]:
    """Columns that are wider in the target than in the source, which does no harm."""
    there = found.columns if found else {}
    return {
        column.name: there[column.name].type
        for column in table.columns
        if column.name in there
        and there[column.name].type != column.type
        and widens(column.type, there[column.name].type)
    }


def columns_to_write(table: Table, found: Target | None) -> list[str]:
    """The columns that a write lists: never one that the target generates itself."""
    generated = {n for n, c in found.columns.items() if c.generated} if found else set()
    return [name for name in (*table.names, *OWN) if name not in generated]


def never_set(found: Target | None) -> set[str]:
    """Columns that an UPDATE may not set: GENERATED ALWAYS AS IDENTITY."""
    return {n for n, c in found.columns.items() if c.always_identity} if found else set()
