"""User-defined types that a table needs, created in the target under the same name.

A replica holds what the source allowed, so domains are created without their checks. Types that
only an extension can define are not created: the error names the extension.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psycopg
from psycopg import sql

from replica_platform.xmin.errors import SchemaRefused
from replica_platform.xmin.names import TableName
from replica_platform.xmin.source.catalog import FIRST_USER_OID, SourceTable
from replica_platform.xmin.target.schemas import create_schema
from replica_platform.xmin.target.tables import column_definition
from replica_platform.xmin.target.widening import widens

Statement = sql.SQL | sql.Composed
Parts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class UserType:
    """A type of the source.

    Attributes:
        name: Its name.
        kind: `e` enum, `d` domain, `c` composite, `r` range, `b` base.
        base: A domain's base type or a range's subtype.
        parts: An enum's labels (with empty types), or a composite's attributes with their types.
        extension: The extension that it belongs to.
        row_type: Whether it is the row type of a table.
    """

    name: TableName
    kind: str
    base: str | None
    parts: Parts
    extension: str | None
    row_type: bool

    @property
    def labels(self) -> list[str]:
        """An enum's labels in order."""
        return [label for label, _ in self.parts]


@dataclass(frozen=True)
class PresentType:
    """A type of the same name in the target.

    Attributes:
        kind: As of a `UserType`.
        base: As of a `UserType`.
        parts: As of a `UserType`.
    """

    kind: str
    base: str | None
    parts: Parts


_BASE_AND_PARTS = """coalesce(format_type(nullif(t.typbasetype, 0), t.typtypmod),
                (select format_type(r.rngsubtype, null) from pg_range r where r.rngtypid = t.oid)),
       coalesce((select json_agg(json_build_array(e.enumlabel, '') order by e.enumsortorder)
                 from pg_enum e where e.enumtypid = t.oid),
                (select json_agg(json_build_array(f.attname, format_type(f.atttypid, f.atttypmod))
                                 order by f.attnum)
                 from pg_attribute f where f.attrelid = t.typrelid and t.typtype = 'c'
                   and f.attnum > 0 and not f.attisdropped), '[]'::json)"""
_NEEDED = f"""
-- The types of the columns and of their parts, the innermost first.
with recursive needed(oid, depth) as (
    select a.atttypid, 0 from pg_attribute a
    where a.attrelid = %(table)s and a.attname = any(%(columns)s)
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
       {_BASE_AND_PARTS},
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
_PRESENT = f"""
select n.nspname, t.typname, t.typtype::text,
       {_BASE_AND_PARTS}
from unnest(%s::text[], %s::text[]) w(schema, name)
join pg_namespace n on n.nspname = w.schema
join pg_type t on t.typnamespace = n.oid and t.typname = w.name
"""


_APPEND_TO_PATH = """
select set_config('search_path',
    concat_ws(', ', nullif(current_setting('search_path'), ''), quote_ident(%(schema)s)), false)
where not %(schema)s = any(current_schemas(true))
"""


def types_of(source: psycopg.Connection, table: SourceTable) -> list[UserType]:
    """Return the user-defined types of a table's columns, each after the types of its parts."""
    if table.built_in:
        return []
    columns = [column.name for column in table.columns if not column.built_in]
    rows = source.execute(
        _NEEDED, {"table": table.oid, "columns": columns, "user": FIRST_USER_OID}
    ).fetchall()
    return [
        UserType(TableName(schema, name), kind, base, _parts(parts), extension, row_type)
        for schema, name, kind, base, parts, extension, row_type in rows
    ]


def keep_in_step(target: psycopg.Connection, wanted: Sequence[UserType]) -> None:
    """Create the types that are absent and extend those that have grown.

    Raises:
        SchemaRefused: A type cannot be created or cannot follow the source's.
    """
    if not wanted:
        return
    present = _present(target, wanted)
    for one in wanted:
        if one.name in present:
            for statement in _growth(one, present[one.name]):
                target.execute(statement)
        else:
            create_schema(target, one.name.schema)
            # Another sync may have created the type meanwhile, for another table.
            errors = (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateObject)
            with suppress(*errors), target.transaction():
                target.execute(_creation(one))


def make_operators_visible(target: psycopg.Connection, wanted: Sequence[UserType]) -> None:
    """Append the schemas of extension types to the session's search_path.

    Otherwise `=` of a citext column outside the path would be that of text, and find other rows
    than the unique index on it.
    """
    for schema in sorted({one.name.schema for one in wanted if one.extension}):
        target.execute(_APPEND_TO_PATH, {"schema": schema})


def _present(
    target: psycopg.Connection, wanted: Sequence[UserType]
) -> dict[TableName, PresentType]:
    with target.transaction():
        target.execute("select set_config('search_path', '', true)")
        rows = target.execute(
            _PRESENT, [[t.name.schema for t in wanted], [t.name.table for t in wanted]]
        ).fetchall()
    return {
        TableName(schema, name): PresentType(kind, base, _parts(parts))
        for schema, name, kind, base, parts in rows
    }


def _creation(one: UserType) -> Statement:
    if one.extension:
        raise SchemaRefused(
            f"The type {one.name} comes from the extension {one.extension}, which the target "
            f'lacks; run there: CREATE EXTENSION "{one.extension}";'
        )
    if one.row_type or one.kind not in "edcr":
        raise SchemaRefused(
            f"The type {one.name} is the row type of a table or written in C; create it in the "
            "target by hand."
        )
    name, base = one.name.sql, sql.SQL(one.base or "")
    if one.kind == "e":
        labels = sql.SQL(", ").join(sql.Literal(label) for label in one.labels)
        return sql.SQL("create type {} as enum ({})").format(name, labels)
    if one.kind == "d":
        return sql.SQL("create domain {} as {}").format(name, base)
    if one.kind == "r":
        return sql.SQL("create type {} as range (subtype = {})").format(name, base)
    attributes = sql.SQL(", ").join(column_definition(*part) for part in one.parts)
    return sql.SQL("create type {} as ({})").format(name, attributes)


def _growth(one: UserType, present: PresentType) -> list[Statement]:
    """Return what brings a type that the target has in step with the source's."""
    if one.extension:
        return []
    if present.kind != one.kind:
        raise SchemaRefused(
            f"The target has a type {one.name} of another kind; rename one of them."
        )
    if present.base != one.base:
        raise SchemaRefused(
            f"The type {one.name} is made of {one.base} in the source and of {present.base} in the "
            "target; nothing was changed, drop it in the target to have it created again."
        )
    if one.kind == "e":
        return _new_labels(one, [label for label, _ in present.parts])
    return _new_attributes(one, present.parts) if one.kind == "c" else []


def _new_attributes(one: UserType, present: Parts) -> list[Statement]:
    for (name, before), (other, now) in zip(present, one.parts, strict=False):
        # A wider attribute in the target does no harm, and cannot be altered while a table uses it.
        if name != other or (before != now and not widens(now, before)):
            raise SchemaRefused(
                f"The composite type {one.name} has {other} {now} in the source and {name} "
                f"{before} in the target; nothing was changed, alter it in the target by hand."
            )
    return [
        sql.SQL("alter type {} add attribute {}").format(one.name.sql, column_definition(*part))
        for part in one.parts[len(present) :]
    ]


def _new_labels(one: UserType, present: list[str]) -> list[Statement]:
    """Return the renamed labels of an enum, or else the added ones."""
    if len(one.labels) == len(present):
        return _renamed_labels(one, present)
    if set(present) - set(one.labels):
        raise SchemaRefused(
            f"The enum {one.name} has the labels {', '.join(present)} in the target and "
            f"{', '.join(one.labels)} in the source; rename them in the target by hand."
        )
    return _added_labels(one, present)


def _renamed_labels(one: UserType, present: list[str]) -> list[Statement]:
    if one.labels != present and set(one.labels) == set(present):
        raise SchemaRefused(
            f"The enum {one.name} has its labels in another order in the target; "
            "drop the target table and the type to have them created again."
        )
    rename = sql.SQL("alter type {} rename value {} to {}")
    return [
        rename.format(one.name.sql, sql.Literal(old), sql.Literal(new))
        for old, new in zip(present, one.labels, strict=True)
        if old != new
    ]


def _added_labels(one: UserType, present: list[str]) -> list[Statement]:
    """Return each new label with its position: after the one before it, or before the first."""
    statements: list[Statement] = []
    for index, label in enumerate(one.labels):
        if label in present:
            continue
        position: Statement = sql.SQL("")
        if index:
            position = sql.SQL(" after {}").format(sql.Literal(one.labels[index - 1]))
        elif present:
            position = sql.SQL(" before {}").format(sql.Literal(present[0]))
        add = sql.SQL("alter type {} add value {}").format(one.name.sql, sql.Literal(label))
        statements.append(add + position)
    return statements


def _parts(rows: list[list[str]]) -> Parts:
    return tuple((name, kind) for name, kind in rows)
