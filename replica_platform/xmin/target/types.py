"""User-defined types that a table needs: made in the target under the same name, kept in step.

A replica holds what the source allowed, hence domains come without their checks. What only an
extension can define is asked for by its name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.xmin.errors import SchemaRefused
from replica_platform.xmin.names import TableName
from replica_platform.xmin.source.catalog import FIRST_USER_OID, Table
from replica_platform.xmin.target.tables import make_schema, widens

Statement = sql.SQL | sql.Composed


@dataclass(frozen=True)
class UserType:
    """A type of the source, spelled out."""

    name: TableName
    kind: str
    """`e` enum, `d` domain, `c` composite, `r` range, `b` base."""
    base: str | None
    """A domain's base or a range's subtype."""
    parts: tuple[tuple[str, str], ...]
    """An enum's labels (with empty types), or a composite's attributes with their types."""
    extension: str | None
    row_type: bool


_NEEDED = """
-- The types of the columns and all that those are made of, the innermost first.
with recursive needed(oid, depth) as (
    select a.atttypid, 0 from pg_attribute a
    where a.attrelid = %(table)s and a.attnum > 0 and not a.attisdropped
    union
    select part.oid, depth + 1
    from needed n join pg_type t on t.oid = n.oid
    cross join lateral (
        select t.typelem where t.typelem <> 0 union all
        select t.typbasetype where t.typbasetype <> 0 union all
        select r.rngsubtype from pg_range r where t.oid in (r.rngtypid, r.rngmultitypid) union all
        select r.rngtypid from pg_range r where t.oid = r.rngmultitypid union all
        select f.atttypid from pg_attribute f
        where f.attrelid = t.typrelid and t.typrelid <> 0 and f.attnum > 0 and not f.attisdropped
    ) part(oid)
    where depth < 32
)
select n.nspname, t.typname, t.typtype::text,
       coalesce(format_type(nullif(t.typbasetype, 0), t.typtypmod),
                (select format_type(r.rngsubtype, null) from pg_range r where r.rngtypid = t.oid)),
       coalesce((select json_agg(json_build_array(e.enumlabel, '') order by e.enumsortorder)
                 from pg_enum e where e.enumtypid = t.oid),
                (select json_agg(json_build_array(f.attname, format_type(f.atttypid, f.atttypmod))
                                 order by f.attnum)
                 from pg_attribute f where f.attrelid = t.typrelid and t.typtype = 'c'
                   and f.attnum > 0 and not f.attisdropped), '[]'::json),
       (select x.extname from pg_depend d join pg_extension x on x.oid = d.refobjid
        where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'),
       exists (select from pg_class c where c.oid = t.typrelid and c.relkind <> 'c')
from (select oid, max(depth) as depth from needed group by oid) w
join pg_type t on t.oid = w.oid
join pg_namespace n on n.oid = t.typnamespace
where t.oid >= %(user)s and t.typtype <> 'm' and not (t.typelem <> 0 and t.typsubscript
      = 'array_subscript_handler'::regproc)
order by w.depth desc
"""
_PRESENT = """
select n.nspname, t.typname, t.typtype::text,
       coalesce(format_type(nullif(t.typbasetype, 0), t.typtypmod),
                (select format_type(r.rngsubtype, null) from pg_range r where r.rngtypid = t.oid)),
       coalesce((select json_agg(json_build_array(e.enumlabel, '') order by e.enumsortorder)
                 from pg_enum e where e.enumtypid = t.oid),
                (select json_agg(json_build_array(f.attname, format_type(f.atttypid, f.atttypmod))
                                 order by f.attnum)
                 from pg_attribute f where f.attrelid = t.typrelid and t.typtype = 'c'
                   and f.attnum > 0 and not f.attisdropped), '[]'::json)
from unnest(%s::text[], %s::text[]) w(schema, name)
join pg_namespace n on n.nspname = w.schema
join pg_type t on t.typnamespace = n.oid and t.typname = w.name
"""


def needed(source: psycopg.Connection, table: Table) -> list[UserType]:
    """The user-defined types of a table's columns, those first that others are made of."""
    if table.built_in:
        return []
    rows = source.execute(_NEEDED, {"table": table.oid, "user": FIRST_USER_OID}).fetchall()
    return [
        UserType(TableName(schema, name), kind, base, _pairs(parts), extension, row_type)
        for schema, name, kind, base, parts, extension, row_type in rows
    ]


def keep_in_step(target: psycopg.Connection, wanted: Sequence[UserType]) -> None:
    """Make the types that are absent and extend those that have grown. Errors: `SchemaRefused`."""
    if not wanted:
        return
    with target.transaction():
        target.execute("select set_config('search_path', '', true)")
        rows = target.execute(
            _PRESENT, [[t.name.schema for t in wanted], [t.name.table for t in wanted]]
        ).fetchall()
    present = {TableName(row[0], row[1]): (row[2], row[3], _pairs(row[4])) for row in rows}
    for one in wanted:
        if one.name in present:
            for statement in _grown(one, *present[one.name]):
                target.execute(statement)
        else:
            make_schema(target, one.name.schema)
            target.execute(_made(one))


def _made(one: UserType) -> Statement:
    if one.extension:
        raise SchemaRefused(
            f"The type {one.name} comes from the extension {one.extension}, which the target "
            f'lacks; run there: CREATE EXTENSION "{one.extension}";'
        )
    if one.row_type or one.kind not in "edcr":
        raise SchemaRefused(
            f"The type {one.name} is a table's row or written in C; make it in the target by hand."
        )
    name = one.name.sql
    if one.kind == "e":
        return sql.SQL("create type {} as enum ({})").format(name, _labels(one.parts))
    if one.kind == "d":
        return sql.SQL("create domain {} as {}").format(name, sql.SQL(one.base or ""))
    if one.kind == "r":
        return sql.SQL("create type {} as range (subtype = {})").format(
            name, sql.SQL(one.base or "")
        )
    attributes = [
        sql.SQL("{} {}").format(sql.Identifier(part), sql.SQL(kind)) for part, kind in one.parts
    ]
    return sql.SQL("create type {} as ({})").format(name, sql.SQL(", ").join(attributes))


def _grown(
    one: UserType, kind: str, base: str | None, parts: tuple[tuple[str, str], ...]
) -> list[Statement]:
    """What brings a type that is there in step."""
    if one.extension:
        return []
    if kind != one.kind:
        raise SchemaRefused(
            f"The target has a type {one.name} of another kind; rename one of them."
        )
    if base != one.base:
        raise SchemaRefused(
            f"The type {one.name} is made of {one.base} in the source and of {base} in the target; "
            "nothing was changed, drop it in the target to have it made anew."
        )
    if kind == "e":
        return _new_labels(one, [label for label, _ in parts])
    if kind != "c":
        return []
    new = one.parts[len(parts) :]
    for (name, before), (other, now) in zip(parts, one.parts, strict=False):
        # One that is wider in the target does no harm; a table that uses it lets none be altered.
        if name != other or (before != now and not widens(now, before)):
            raise SchemaRefused(
                f"The composite type {one.name} has {other} {now} in the source and {name} "
                f"{before} in the target; nothing was changed, alter it in the target by hand."
            )
    return [
        sql.SQL("alter type {} add attribute {} {}").format(
            one.name.sql, sql.Identifier(part), sql.SQL(part_type)
        )
        for part, part_type in new
    ]


def _new_labels(one: UserType, present: list[str]) -> list[Statement]:
    """Labels renamed in their places, then new ones before the label that follows them."""
    wanted = [label for label, _ in one.parts]
    statements: list[Statement] = []
    if len(wanted) == len(present) and wanted != present:
        if set(wanted) == set(present):
            raise SchemaRefused(
                f"The enum {one.name} has its labels in another order in the target; "
                "drop the target table and the type to have them made anew."
            )
        for old, new in zip(present, wanted, strict=True):
            if old != new:
                rename = sql.SQL("alter type {} rename value {} to {}")
                statements.append(rename.format(one.name.sql, _text(old), _text(new)))
        return statements
    missing = [label for label in present if label not in wanted]
    if missing:
        raise SchemaRefused(
            f"The enum {one.name} has the labels {', '.join(present)} in the target and "
            f"{', '.join(wanted)} in the source; rename them in the target by hand."
        )
    for place, label in enumerate(wanted):
        if label not in present:
            where: Statement = sql.SQL("")
            if place:
                where = sql.SQL(" after {}").format(_text(wanted[place - 1]))
            elif present:
                where = sql.SQL(" before {}").format(_text(present[0]))
            add = sql.SQL("alter type {} add value {}").format(one.name.sql, _text(label))
            statements.append(add + where)
    return statements


def _labels(parts: Sequence[tuple[str, str]]) -> sql.Composed:
    return sql.SQL(", ").join(_text(label) for label, _ in parts)


def _text(label: str) -> sql.Composable:
    return sql.Literal(label)


def _pairs(parts: list[list[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, kind) for name, kind in parts)
