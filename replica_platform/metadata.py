"""Metadata that all pillars name and format alike."""

from collections.abc import Iterable, Sequence
from typing import Any

import dagster as dg


def change(changed: bool, summary: str) -> dict[str, Any]:
    """Return whether a materialisation changed anything, and a summary of what it did."""
    return {"changed": changed, "done": summary if changed else "unchanged"}


def table_schema(columns: Iterable[tuple[str, str]]) -> dg.TableSchema:
    """Return the schema for an asset's page from pairs of column name and type."""
    return dg.TableSchema([dg.TableColumn(name, type=type_) for name, type_ in columns])


def markdown_rows(rows: Sequence[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Return rows as a markdown table; without `head` the columns have no names."""
    width = len(rows[0]) if rows else len(head)
    lines = [head or [" "] * width, ["---"] * width, *rows]
    return "\n".join(
        "| " + " | ".join(str(value).replace("|", "\\|") for value in line) + " |" for line in lines
    )
