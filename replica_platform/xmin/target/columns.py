"""The columns of a target table, kept in step when the source's change.

Every change is worked out, or refused, before a row is read; the commit carries it out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from replica_platform.xmin.errors import SchemaRefused
from replica_platform.xmin.names import TableName
from replica_platform.xmin.source.catalog import SourceColumn, SourceTable
from replica_platform.xmin.target.tables import (
    ALL_SYNC_COLUMNS,
    LEAF,
    XMIN,
    TargetTable,
    column_definition,
    create_location_index,
    create_unique_index,
    create_xmin_index,
    sync_columns,
)
from replica_platform.xmin.target.widening import widens


@dataclass(frozen=True)
class Change:
    """A change of the target's definition.

    Attributes:
        statement: The statement; None where there is only something to report.
        note: What the report says of it; None where it says nothing.
    """

    statement: sql.SQL | sql.Composed | None
    note: str | None = None


def column_changes(
    name: TableName,
    found: TargetTable,
    table: SourceTable,
    key: tuple[str, ...],
    added: Sequence[SourceColumn],
    delivered: Mapping[str, Any] | None = None,
    *,
    locations: bool = False,
) -> tuple[Change, ...]:
    """Return what brings a target table in step with its source; nothing is changed yet.

    New columns are added, wider types taken over, and dropped columns kept. Only columns that are
    left out from now on are dropped: what they hold was not to be copied.

    Args:
        name: The target table.
        found: The target table as it is.
        table: The source table.
        key: The key that rows are matched by; empty for none.
        added: The new columns that all old rows hold a constant of.
        delivered: The fingerprint of the last sync; None where there was none.
        locations: Whether the target keeps the rows' locations in the source.

    Raises:
        SchemaRefused: A column's new type does not hold all values of the old one.
    """
    if found.kind not in "rp":
        raise SchemaRefused(f"{name} in the target is not a table; rename or drop it there.")
    widened = _widened(table, found)
    _refuse_narrowing(name, found, table, widened)
    withdrawn = _withdrawn(found, table, delivered or {})
    ours = sync_columns(locations=locations)
    changes = [
        *_additions(name, found, table, {column.name: column.missing for column in added}, ours),
        *(_type_change(name, column, kind) for column, kind in widened.items()),
        *_dropped(name, withdrawn),
        *_kept(found, table, withdrawn),
        *_btrees(name, found),
    ]
    if XMIN not in found.columns:
        changes.append(Change(create_xmin_index(name)))
    if locations and LEAF not in found.columns:
        changes.append(Change(create_location_index(name)))
    if key and frozenset(key) not in found.unique_keys:
        changes.append(Change(create_unique_index(name, key)))
    return tuple(changes)


def wider_in_target(table: SourceTable, found: TargetTable) -> dict[str, str]:
    """Return the columns whose type is wider in the target, which is left so, with that type."""
    return {
        column: found.columns[column].type
        for column, kind in table.types.items()
        if column in found.columns
        and found.columns[column].type != kind
        and widens(kind, found.columns[column].type)
    }


def writable_columns(
    table: SourceTable, found: TargetTable, *, locations: bool = False
) -> list[str]:
    """Return the columns that a write lists: all but those that the target computes."""
    ours = sync_columns(locations=locations)
    return [name for name in (*table.names, *ours) if name not in found.generated]


def _widened(table: SourceTable, found: TargetTable) -> dict[str, str]:
    """Return the columns whose type in the target must change, with the source's type."""
    left_as_they_are = wider_in_target(table, found)
    return {
        column: kind
        for column, kind in table.types.items()
        if column in found.columns
        and found.columns[column].type != kind
        and column not in left_as_they_are
    }


def _refuse_narrowing(
    name: TableName, found: TargetTable, table: SourceTable, widened: Mapping[str, str]
) -> None:
    refused = [
        f"{column} is {found.columns[column].type} in the target and {kind} in the source"
        for column, kind in widened.items()
        if not widens(found.columns[column].type, kind)
    ]
    if refused:
        raise SchemaRefused(
            f"{name} cannot follow {table.name}: {'; '.join(refused)}. Nothing was changed; "
            "alter the column in the target by hand, or drop the target table to have it copied "
            "again."
        )


def _additions(
    name: TableName,
    found: TargetTable,
    table: SourceTable,
    constants: Mapping[str, str | None],
    ours: Mapping[str, str],
) -> list[Change]:
    changes: list[Change] = []
    for column, kind in {**table.types, **ours}.items():
        if column not in found.columns:
            note = None if column in ours else f"column {column} {kind} was added"
            changes += _addition(name, column, kind, constants.get(column), note)
    return changes


def _addition(
    name: TableName, column: str, kind: str, constant: str | None, note: str | None
) -> list[Change]:
    add = sql.SQL("alter table {} add column {}").format(name.sql, column_definition(column, kind))
    if constant is None:
        return [Change(add, note)]
    # With a default no row is rewritten, neither here nor when the source added the column.
    add += sql.SQL(" default {}").format(sql.Literal(constant))
    drop_default = sql.SQL("alter table {} alter column {} drop default").format(
        name.sql, sql.Identifier(column)
    )
    return [Change(add, note), Change(drop_default)]


def _type_change(name: TableName, column: str, kind: str) -> Change:
    alter = sql.SQL("alter table {} alter column {} type {}").format(
        name.sql, sql.Identifier(column), sql.SQL(kind)
    )
    return Change(alter, f"column {column} was widened to {kind}")


def _btrees(name: TableName, found: TargetTable) -> list[Change]:
    """Name the indexes of earlier versions; a person may use them, so they are not dropped here."""
    return [
        Change(
            None,
            f"the btree {index} keeps updates from being HOT; replace it: "
            f"{create_xmin_index(name, concurrently=True).as_string()}; "
            f"DROP INDEX CONCURRENTLY {index};",
        )
        for index in found.xmin_btrees
    ]


def _withdrawn(
    found: TargetTable, table: SourceTable, delivered: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the columns that an earlier sync copied, and that are left out now."""
    copied = {attnum: name for attnum, name, *_ in delivered.get("columns", ())}
    return tuple(
        name
        for attnum, name in table.left_out.items()
        if copied.get(attnum) == name and name in found.columns
    )


def _dropped(name: TableName, withdrawn: Sequence[str]) -> list[Change]:
    drop = sql.SQL("alter table {} drop column {}")
    return [
        Change(
            drop.format(name.sql, sql.Identifier(column)),
            f"column {column} is left out now and was dropped",
        )
        for column in withdrawn
    ]


def _kept(found: TargetTable, table: SourceTable, withdrawn: Sequence[str]) -> list[Change]:
    left_out = table.left_out.values()
    return [
        Change(
            None,
            f"column {column} of the target is left out of the copy and was kept"
            if column in left_out
            else f"column {column} is no longer in the source and was kept",
        )
        for column in found.columns
        if column not in (*table.names, *ALL_SYNC_COLUMNS, *withdrawn)
    ]
