"""Drift: what a changed definition means for the rows that were delivered.

A new column gives every old row the same constant, and a dropped one leaves the other columns as
they were: neither needs a row to be read again. Every other change does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from replica_platform.xmin.source.catalog import Leaf, SourceColumn, SourceTable


@dataclass(frozen=True)
class Drift:
    """How a table differs from what its watermark knows.

    Attributes:
        added: New columns; rows not written since have their `missing` constant, or NULL.
        whole: Why all rows must be read again; empty where that is not needed.
    """

    added: tuple[SourceColumn, ...] = ()
    whole: str = ""


def drift(known: dict[str, Any], table: SourceTable) -> Drift:
    """Compare the fingerprint of a watermark with the table as it is now."""
    known_columns = {column[0]: column for column in known["columns"]}
    added = [column for column in table.columns if column.attnum not in known_columns]
    leaves = _known_leaves(known, table)
    whole = (
        _changed_table(known, table)
        or _changed_column(known_columns, table)
        or _unreadable_addition(known, added)
        or _changed_leaf_column(known, leaves)
        or _differing_constants(added, leaves)
    )
    if whole:
        return Drift(whole=whole)
    return Drift(tuple(_with_constant(column, leaves) for column in added))


def _changed_table(known: dict[str, Any], table: SourceTable) -> str:
    now = table.fingerprint
    if known["oid"] != now["oid"]:
        return "The table is another one under the same name."
    if known["policies"] != now["policies"]:
        return "The row security policies of the table have changed."
    if known["key"] != now["key"]:
        return "The key of the table has changed."
    if known.get("masked", {}) != now.get("masked", {}):
        return "The masks of the table have changed."
    return ""


def _changed_column(known_columns: dict[int, list[Any]], table: SourceTable) -> str:
    changed = [
        column.name
        for column in table.columns
        if known_columns.get(column.attnum, _facts(column)) != _facts(column)
    ]
    if changed:
        return f"Column {', '.join(changed)} has changed without a new xmin."
    return ""


def _unreadable_addition(known: dict[str, Any], added: Sequence[SourceColumn]) -> str:
    old_names = {column[1] for column in known["columns"]}
    for column in added:
        if column.attnum in known.get("left_out", ()):
            return f"Column {column.name} was left out before."
        if column.generated:
            return f"The generated column {column.name} is new."
        if column.name in old_names:
            return f"Column {column.name} was dropped and added again."
    return ""


def _known_leaves(known: dict[str, Any], table: SourceTable) -> list[Leaf]:
    """Return the partitions that the watermark knows; the others are read whole anyway."""
    layouts = known.get("layouts", {})
    return [leaf for leaf in table.leaves if leaf.columns and str(leaf.oid) in layouts]


def _changed_leaf_column(known: dict[str, Any], leaves: Sequence[Leaf]) -> str:
    """Find a partition's column that was replaced while the partition was detached."""
    for leaf in leaves:
        before = known["layouts"][str(leaf.oid)]
        for column in leaf.columns:
            now = [column.attnum, column.generated]
            if before.get(column.name, now) != now:
                return f"Column {column.name} of {leaf.name} is another one than before."
    return ""


def _differing_constants(added: Sequence[SourceColumn], leaves: Sequence[Leaf]) -> str:
    for column in added:
        if len(_constants(column, leaves)) > 1:
            return f"Old rows have different values of the new column {column.name}."
    return ""


def _with_constant(column: SourceColumn, leaves: Sequence[Leaf]) -> SourceColumn:
    """Return a new column with the constant of the partitions, where there are any."""
    constants = _constants(column, leaves)
    return replace(column, missing=constants.pop()) if constants else column


def _constants(column: SourceColumn, leaves: Sequence[Leaf]) -> set[str | None]:
    return {own.missing for leaf in leaves for own in leaf.columns if own.name == column.name}


def _facts(column: SourceColumn) -> list[Any]:
    return [column.attnum, column.name, column.type, column.generated, column.definition]
