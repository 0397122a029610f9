"""What the pages show of a synced table: the figures of its sync and of its comparison."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import dagster as dg

from replica_platform.app.entries import TableEntry
from replica_platform.metadata import change, markdown_rows, table_schema
from replica_platform.pictures import bars
from replica_platform.xmin import GroupReport, Integrity, ListedColumn, ListedTable, SyncReport


def copied_columns(listed: ListedTable, entry: TableEntry) -> ListedTable:
    """Return a table of the source with only the columns that are copied, as they arrive."""
    chosen = entry.columns or [column.name for column in listed.columns]
    columns = [
        _masked(column, entry.mask[column.name]) if column.name in entry.mask else column
        for column in listed.columns
        if column.name in chosen and column.name not in entry.left_out
    ]
    return replace(listed, columns=tuple(columns))


def _masked(column: ListedColumn, mask: object) -> ListedColumn:
    kind = mask if isinstance(mask, str) else "null" if mask is None else "one fixed value"
    comment = f"{column.comment or ''} (masked: {kind})".strip()
    return replace(column, type="text" if kind == "hash" else column.type, comment=comment)


def table_metadata(listed: ListedTable, source: dg.AssetKey | None = None) -> dict[str, Any]:
    """Return what the source's catalog tells of a table: columns, comments and foreign keys.

    Args:
        listed: The table.
        source: Of a copy: the asset of the source's table, which each column comes from.
    """
    refers = {
        column: f"{one.table}.{other}"
        for one in listed.references
        for column, other in zip(one.columns, one.referred, strict=True)
    }
    columns = [_column(column, refers.get(column.name)) for column in listed.columns]
    metadata: dict[str, Any] = {"dagster/column_schema": dg.TableSchema(columns)}
    if source:
        metadata["dagster/column_lineage"] = _lineage(listed, source)
    return metadata


# Thousands of tables share a few columns, such as a key and a time.
@lru_cache(maxsize=4096)
def _column(column: ListedColumn, refers: str | None) -> dg.TableColumn:
    return dg.TableColumn(
        column.name,
        column.type,
        description=_description(column.comment, refers),
        constraints=dg.TableColumnConstraints(nullable=column.nullable),
    )


def _description(comment: str | None, refers: str | None) -> str | None:
    parts = [comment, f"Refers to {refers}." if refers else None]
    return " ".join(part for part in parts if part) or None


def _lineage(listed: ListedTable, source: dg.AssetKey) -> dg.TableColumnLineage:
    return dg.TableColumnLineage(
        {
            column.name: [dg.TableColumnDep(asset_key=source, column_name=column.name)]
            for column in listed.columns
        }
    )


def sync_metadata(report: SyncReport, described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a synced table's materialisation.

    Args:
        report: What the sync did.
        described: The metadata of its definition, see `table_metadata`.
    """
    # The page shows what the definition says of the columns, unless they are others by now.
    schema = {"dagster/column_schema": table_schema(report.columns)}
    columns = {} if _same_columns(described, report) else schema
    moved = report.rows_inserted + report.rows_updated + report.rows_deleted
    done = (
        f"{report.rows_inserted:,} inserted, {report.rows_updated:,} updated, "
        f"{report.rows_deleted:,} deleted"
    )
    if report.mode == "blocks":
        done += f", {report.blocks_read:,} of {report.blocks:,} blocks read"
    return {
        **change(report.changed, done),
        "dagster/row_count": report.rows,
        "dagster/table_name": report.target_table,
        **columns,
        "mode": report.mode,
        "why": report.why,
        "rows_read": report.rows_read,
        "blocks_read": report.blocks_read,
        "rows_moved": moved,
        "bytes": report.bytes,
        "sync_seconds": report.seconds,
        "lag_xids": report.lag_xids,
        "snapshot_seconds": report.snapshot_s,
        "source_connections": report.source_connections,
        "source_busy_seconds": report.source_busy_s,
        "content_rows_proven": report.proof.rows if report.proof else 0,
        "content_rows_repaired": report.proof.repaired if report.proof else 0,
    }


def watch_metadata(group: GroupReport) -> dict[str, Any]:
    """Return what is true of all tables of a group that was watched; empty of a single sync."""
    if group.lag_p50_s is None and group.syncs == 1:
        return {}
    return {
        "syncs": group.syncs,
        "lag_p50_seconds": group.lag_p50_s,
        "lag_p99_seconds": group.lag_p99_s,
        "checkpoints": group.checkpoints,
    }


def _same_columns(described: Mapping[str, Any], report: SyncReport) -> bool:
    schema = described.get("dagster/column_schema")
    return schema is not None and dict(report.columns) == {c.name: c.type for c in schema.columns}


def integrity_metadata(found: Integrity) -> dict[str, Any]:
    """Return the metadata of the check that compares a table's two sides."""
    keys = {"missing": found.missing, "stale": found.stale, "extra": found.extra}
    differing = [(difference, key) for difference, some in keys.items() for key in some]
    return {
        "score": found.score,
        **{f"score/{name}": float(term) for name, term in found.terms.items()},
        "missing": found.missing_count,
        "stale": found.stale_count,
        "extra": found.extra_count,
        "pending": found.pending_count,
        **(
            {"keys": dg.MetadataValue.md(markdown_rows(differing, ("difference", "key")))}
            if differing
            else {}
        ),
        "source_rows": found.source_rows,
        "target_rows": found.target_rows,
        "gap_xids": found.gap_xids,
        "content_rows": found.content_rows,
        "content_age_seconds": found.content_age_s,
        "content_coverage": found.content_coverage,
        "held_back_by": found.held_back_by or "nobody",
    }


def ages_picture(found: Integrity) -> str:
    """Return the rows of both sides by the age of their xmin, as a picture in markdown."""
    source, target = found.source_ages or {}, found.target_ages or {}
    ages = sorted({*source, *target})
    return bars(
        "Rows by the age of their xmin in transactions",
        [f"2^{age}" for age in ages],
        {
            "source": [source.get(age, 0) for age in ages],
            "target": [target.get(age, 0) for age in ages],
        },
    )
