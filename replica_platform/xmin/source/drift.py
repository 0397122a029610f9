"""What a changed definition means for the rows that have been delivered.

Adding a column leaves every old row with one constant, and dropping one leaves the rest as it
was: neither needs a row to be read again. Everything else does.
"""

from dataclasses import dataclass, replace
from typing import Any

from replica_platform.xmin.source.catalog import Column, Table


@dataclass(frozen=True)
class Drift:
    """How a table differs from what its mark knew."""

    added: tuple[Column, ...] = ()
    """New columns; rows that were not written since have their `missing` constant, or NULL."""
    whole: str = ""
    """Why all rows must be read again; empty where that is not so."""


def drift(known: dict[str, Any], table: Table) -> Drift:
    """Compare a mark's fingerprint with the table as it is."""
    now = table.fingerprint
    if known["oid"] != now["oid"]:
        return Drift(whole="The table is another one under the same name.")
    if known["policies"] != now["policies"]:
        return Drift(whole="The row security policies of the table have changed.")
    if known["key"] != now["key"]:
        return Drift(whole="The key of the table has changed.")
    before = {column[0]: column for column in known["columns"]}
    changed = [c.name for c in table.columns if before.get(c.attnum, _as_known(c)) != _as_known(c)]
    if changed:
        return Drift(whole=f"Column {', '.join(changed)} has changed in a way that leaves no xmin.")
    added = [column for column in table.columns if column.attnum not in before]
    old_names = {column[1] for column in known["columns"]}
    for column in added:
        if column.generated:
            return Drift(whole=f"The generated column {column.name} is new.")
        if column.name in old_names:
            return Drift(whole=f"Column {column.name} was dropped and made anew.")
    return _of_leaves(known, table, added)


def _of_leaves(known: dict[str, Any], table: Table, added: list[Column]) -> Drift:
    """The same for partitions, whose columns can change while they are detached.

    Leaves that the mark does not know are read whole, so theirs do not count.
    """
    layouts = known.get("layouts", {})
    leaves = [leaf for leaf in table.leaves if leaf.layout and str(leaf.oid) in layouts]
    for leaf in leaves:
        before = layouts[str(leaf.oid)]
        for place in leaf.layout:
            if before.get(place.name, now := [place.attnum, place.generated]) != now:
                return Drift(
                    whole=f"Column {place.name} of {leaf.name} is another one than before."
                )
    constants = []
    for column in added:
        seen = {
            place.missing for leaf in leaves for place in leaf.layout if place.name == column.name
        }
        if len(seen) > 1:
            return Drift(whole=f"Old rows have different values of the new column {column.name}.")
        constants.append(replace(column, missing=seen.pop()) if seen else column)
    return Drift(tuple(constants))


def _as_known(column: Column) -> list[Any]:
    return [column.attnum, column.name, column.type, column.generated, column.definition]
