"""Metadata that all pillars name and format alike."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import dagster as dg

from replica_platform.replica import GenerationDiff, PublishedColumn, TableDiff

# An event keeps its columns; more than these would be a megabyte a publication.
MOST_COLUMNS = 300
# The same for the tables that a publication changed, and what is said of one: 20 kB at most.
MOST_TABLES, MOST_CHARACTERS = 60, 240


def change(changed: bool, summary: str) -> dict[str, Any]:
    """Return whether a materialisation changed anything, and a summary of what it did."""
    return {"changed": changed, "done": summary if changed else "unchanged"}


def history(picture: str | None) -> dict[str, Any]:
    """Return a picture of the past as metadata; nothing for None."""
    return {"history": dg.MetadataValue.md(picture)} if picture else {}


def table_schema(columns: Iterable[tuple[str, str]]) -> dg.TableSchema:
    """Return the schema for an asset's page from pairs of column name and type."""
    return dg.TableSchema([dg.TableColumn(name, type=type_) for name, type_ in columns])


def key_part(name: str) -> str:
    """Return a name as a part of an asset's key, which Dagster makes an identifier of.

    A name with other characters gets a digest of it, so that two such names stay two.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    if plain == name:
        return name
    return f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def replica_columns(
    columns: Sequence[PublishedColumn], parents: Iterable[dg.AssetKey]
) -> dict[str, Any]:
    """Return the schema and lineage of a replica's page, its columns as `table.column`.

    Args:
        columns: The columns of all tables; none is shown of more than `MOST_COLUMNS`.
        parents: The assets that the replica is made of; a column comes from the one that is
            called like its table.
    """
    if len(columns) > MOST_COLUMNS:
        return {}
    by_table = {key.path[-1]: key for key in parents}
    schema = dg.TableSchema(
        [dg.TableColumn(_full_name(one), one.type, one.comment) for one in columns]
    )
    lineage = {
        _full_name(one): [dg.TableColumnDep(by_table[one.table], one.name)]
        for one in columns
        if one.table in by_table
    }
    return {
        "dagster/column_schema": schema,
        **({"dagster/column_lineage": dg.TableColumnLineage(lineage)} if lineage else {}),
    }


def changes_table(found: GenerationDiff) -> dict[str, Any]:
    """Return what a publication changed: the rows as numbers, and a table of the tables.

    Args:
        found: The comparison with the generation before it; values of rows are not shown.
    """
    rows = [
        (one.table, *map(_shown, (one.rows_added, one.rows_removed, one.rows_changed)), _notes(one))
        for one in found.tables[:MOST_TABLES]
    ]
    if left := len(found.tables) - MOST_TABLES:
        rows += [(f"and {left:,} more", "", "", "", "")] if left > 0 else []
    head = ("table", "added", "removed", "changed", "")
    text = markdown_rows(rows, head) if rows else found.sentence
    return {
        "rows_added": found.rows_added,
        "rows_removed": found.rows_removed,
        "rows_changed": found.rows_changed,
        "changes": dg.MetadataValue.md(text),
        "compared_with": found.before,
        "comparison_seconds": found.seconds,
    }


def _shown(rows: int | None) -> str:
    return "?" if rows is None else f"{rows:,}"


def _notes(table: TableDiff) -> str:
    notes = table.notes
    return notes if len(notes) <= MOST_CHARACTERS else f"{notes[:MOST_CHARACTERS]}…"


def _full_name(column: PublishedColumn) -> str:
    schema = "" if column.schema == "main" else f"{column.schema}."
    return f"{schema}{column.table}.{column.name}"


def markdown_rows(rows: Sequence[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Return rows as a markdown table; without `head` the columns have no names."""
    width = len(rows[0]) if rows else len(head)
    lines = [head or [" "] * width, ["---"] * width, *rows]
    return "\n".join(
        "| " + " | ".join(str(value).replace("|", "\\|") for value in line) + " |" for line in lines
    )
