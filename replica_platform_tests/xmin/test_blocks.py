"""Sync by blocks: only changed blocks are read, deletes are exact, and every obstacle is named."""

from typing import Any

import pytest

from replica_platform.xmin import SyncReport, sync, validate
from replica_platform_tests.xmin.helpers import execute, rows

TABLE = "create table t (id int primary key, v text)"
FILLED = "insert into t select i, repeat('x', 400) from generate_series(1, 2000) i"


def by_blocks(source: str, target: str, table: str = "t", **options: Any) -> SyncReport:
    return sync(source, target, table, mode="blocks", **options)


def located(dsn: str, table: str = "t") -> list[tuple[Any, ...]]:
    """Return the rows of a source table with their locations, as the target has them."""
    return rows(
        dsn,
        f"select t, tableoid::bigint, (ctid::text::point)[0]::bigint, ctid::text from {table} t "
        "order by 1",
    )


def check(source: str, target: str, table: str = "t", columns: str = "id, v") -> None:
    """Check that rows, locations and xmins are equal on both sides."""
    there = rows(
        source,
        f"select {columns}, tableoid::bigint, (ctid::text::point)[0]::bigint, ctid::text, "
        f"xmin::text::bigint from {table} order by 1, 2, 3, 4",
    )
    here = rows(
        target,
        f"select {columns}, source_leaf::bigint, source_block, source_ctid::text, "
        f"source_xmin & 4294967295 from {table} order by 1, 2, 3, 4",
    )
    assert here == there


@pytest.fixture
def filled(source: str, target: str) -> tuple[str, str]:
    """A table of 112 blocks, copied with its locations."""
    execute(source, TABLE, FILLED, "vacuum t", "checkpoint")
    assert by_blocks(source, target).mode == "full"
    check(source, target)
    return source, target


def test_two_blocks_of_many_are_read(filled: tuple[str, str]) -> None:
    source, target = filled
    execute(source, "update t set v = 'y' where id = 1000", "delete from t where id = 1001")
    report = by_blocks(source, target)
    assert report.mode == "blocks", report.why
    assert report.why == "2 of 112 blocks changed since the last sync and are read."
    assert "2 of 112 blocks read" in report.notes
    assert (report.rows_read, report.rows_updated, report.rows_deleted) == (1, 1, 1)
    check(source, target)
    assert validate(source, target, "t", content=True).score == 1.0
