"""Metadata that every pillar words alike, so that the pages read as one."""

from collections.abc import Iterable, Sequence
from typing import Any

import dagster as dg


def described(changed: bool, what: str) -> dict[str, Any]:
    """Whether a materialisation changed anything, and what it did in a few words."""
    return {"changed": changed, "done": what if changed else "unchanged"}


def table_schema(columns: Iterable[tuple[str, str]]) -> dg.TableSchema:
    """The schema that the page of an asset shows, from pairs of name and type."""
    return dg.TableSchema([dg.TableColumn(name, type=type_) for name, type_ in columns])


def markdown_rows(rows: Sequence[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Rows as a markdown table; without `head` the columns have no names."""
    width = len(rows[0]) if rows else len(head)
    lines = [head or [" "] * width, ["---"] * width, *rows]
    return "\n".join(
        "| " + " | ".join(str(value).replace("|", "\\|") for value in line) + " |" for line in lines
    )
