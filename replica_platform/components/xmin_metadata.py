"""What the pages show of a synced table: the figures of its sync and of its comparison."""

from typing import Any

import dagster as dg

from replica_platform.metadata import change, markdown_rows, table_schema
from replica_platform.xmin import Integrity, SyncReport


def sync_metadata(report: SyncReport) -> dict[str, Any]:
    """Return the metadata of a synced table's materialisation."""
    moved = report.rows_inserted + report.rows_updated + report.rows_deleted
    return {
        **change(
            report.changed,
            f"{report.rows_inserted:,} inserted, {report.rows_updated:,} updated, "
            f"{report.rows_deleted:,} deleted",
        ),
        "dagster/row_count": report.rows,
        "dagster/table_name": report.target_table,
        "dagster/column_schema": table_schema(report.columns),
        "mode": report.mode,
        "why": report.why,
        "rows_read": report.rows_read,
        "rows_moved": moved,
        "bytes": report.bytes,
        "sync_seconds": report.seconds,
        "lag_xids": report.lag_xids,
    }


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
        "keys": dg.MetadataValue.md(markdown_rows(differing, ("difference", "key"))),
        "source_rows": found.source_rows,
        "target_rows": found.target_rows,
        "gap_xids": found.gap_xids,
        "content_rows": found.content_rows,
        "content_age_seconds": found.content_age_s,
        "xmin_ages": dg.MetadataValue.md(_histogram(found)),
        "held_back_by": found.held_back_by or "nobody",
    }


def _histogram(found: Integrity) -> str:
    """Return the rows of both sides by the age of their xmin, as bars side by side."""
    source, target = found.source_ages or {}, found.target_ages or {}
    most = max([*source.values(), *target.values(), 1])
    return markdown_rows(
        [
            (f"2^{age}", _bar(source.get(age, 0), most), _bar(target.get(age, 0), most))
            for age in sorted({*source, *target})
        ],
        ("age in xids", "source", "target"),
    )


def _bar(rows: int, most: int) -> str:
    return f"{'█' * round(20 * rows / most)} {rows:,}"
