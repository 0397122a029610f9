"""Times without a zone are read by the writer's clock, wherever the writer is."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from replica_platform.xmin import sync
from replica_platform.xmin.errors import CannotSync
from replica_platform.xmin.source import timestamp
from replica_platform_tests.xmin.helpers import execute, rows

ZONES = ("America/New_York", "Asia/Tokyo", "Etc/GMT+12", "Pacific/Kiritimati")
HOW: dict[str, Any] = {"mode": "timestamp", "timestamp_column": "at"}
QUERY = "select id, x, at from t order by id"
# The condition of an earlier version, which took the column for a time in UTC.
NAIVE = """select count(*) from t where at at time zone 'UTC' >=
    (select '{}'::timestamptz) and x = 'new'"""


def write(dsn: str, zone: str, *statements: str) -> None:
    """Run statements in a session of that time zone."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select set_config('timezone', %s, false)", [zone])
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


def fill(source: str, zone: str, kind: str) -> None:
    write(
        source,
        zone,
        f"create table t (id int primary key, x text, at {kind})",
        "insert into t select i, 'old', now() - make_interval(days => i) "
        "from generate_series(3, 1002) i",
    )


@pytest.fixture
def configured(source: str) -> Iterator[None]:
    """A source whose configured time zone is New York's."""
    name = rows(source, "select current_database()")[0][0]
    execute(source, f"alter database {name} set timezone = 'America/New_York'")
    yield
    execute(source, f"alter database {name} reset timezone")


@pytest.mark.parametrize("kind", ["timestamp", "timestamp(0)", "date", "timestamptz", "local_time"])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("zone", ZONES)
def test_a_writer_of_any_zone_loses_nothing(
    zone: str, named: bool, kind: str, source: str, target: str
) -> None:
    execute(source, "create domain local_time as timestamp without time zone")
    fill(source, zone, kind)
    how = HOW | ({"timestamp_zone": zone} if named else {})
    sync(source, target, "t", **how)
    write(
        source,
        zone,
        "update t set x = 'new', at = now() where id % 20 = 0",
        "insert into t values (5000, 'new', now())",
        "delete from t where id = 7",
    )
    report = sync(source, target, "t", **how)
    assert (report.rows_updated, report.rows_inserted, report.rows_deleted) == (50, 1, 1)
    assert report.rows_read == 51  # and no row of three days ago
    assert rows(source, QUERY) == rows(target, QUERY)


@pytest.mark.parametrize(("zone", "found"), [("America/New_York", 0), ("Asia/Tokyo", 51)])
def test_the_naive_comparison_loses(zone: str, found: int, source: str, target: str) -> None:
    """The control: west of UTC every change lies before the start of the read."""
    fill(source, zone, "timestamp")
    sync(source, target, "t", **HOW)
    since = rows(target, "select timestamp_from::text from replica_platform.mark")[0][0]
    write(source, zone, "update t set x = 'new', at = now() where id % 20 = 0",
          "insert into t values (5000, 'new', now())")  # fmt: skip
    assert rows(source, NAIVE.format(since)) == [(found,)]
    sync(source, target, "t", **HOW)
    assert rows(source, QUERY) == rows(target, QUERY)


def test_the_report_says_what_is_assumed(source: str, target: str, configured: None) -> None:
    fill(source, "America/New_York", "timestamp")
    first = sync(source, target, "t", **HOW)
    assert "at has no time zone" in first.why
    assert "America/New_York, the source's configured TimeZone" in first.why
    assert "timestamp_zone" in first.why
    again = sync(source, target, "t", **HOW)
    assert "America/New_York" in again.why
    named = sync(source, target, "t", timestamp_zone="Asia/Tokyo", **HOW)
    assert "at has no time zone and is read as Asia/Tokyo" in named.why
    execute(source, "alter table t alter column at type timestamptz")
    execute(target, "drop table t")
    assert "zone" not in sync(source, target, "t", mode="timestamp", timestamp_column="at").why


def test_the_hour_repeated_by_summer_time_is_read_again(source: str) -> None:
    """In New York 1:40 came at 5:40 UTC, and twenty minutes later it was 1:00 again."""
    execute(source, "create table t (id int primary key, at timestamp)",
            "insert into t values (1, '2025-11-02 01:05'), (2, '2025-11-02 00:55')")  # fmt: skip
    oid = rows(source, "select 't'::regclass::oid")[0][0]
    naive = "select id from t where at >= timestamptz '2025-11-02 05:40Z' at time zone '{}'"
    with psycopg.connect(source, autocommit=True) as connection:
        window = timestamp.window(
            connection, oid, "at", "2025-11-02 05:40:00+00", "America/New_York"
        )
        found = connection.execute(b"select id from t where " + window.condition.as_bytes())
        assert found.fetchall() == [(1,)]
    assert rows(source, naive.format("America/New_York")) == []  # the control


def test_a_watermark_that_lost_changes_is_read_whole_once(source: str, target: str) -> None:
    """Changes that an earlier version missed lie before the start of any later read."""
    fill(source, "America/New_York", "timestamp")
    sync(source, target, "t", **HOW)
    execute(target, "update replica_platform.mark set identity = identity - 'name' - 'former'",
            "update t set x = 'stale' where id = 500")  # fmt: skip
    report = sync(source, target, "t", **HOW)
    assert (report.rows_read, report.rows_updated) == (1000, 1)
    assert "earlier version" in report.why
    assert sync(source, target, "t", **HOW).rows_read == 0


def test_an_older_watermark_with_zones_continues(source: str, target: str) -> None:
    fill(source, "America/New_York", "timestamptz")
    sync(source, target, "t", **HOW)
    execute(target, "update replica_platform.mark set identity = identity - 'name' - 'former'")
    assert sync(source, target, "t", **HOW).rows_read == 0


def test_an_unknown_zone_and_a_column_without_times_are_refused(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key, at timestamp, n bigint)",
            "create table u (id int primary key)")  # fmt: skip
    with pytest.raises(CannotSync, match=r"'Mars'; .* America/New_York"):
        sync(source, target, "t", timestamp_zone="Mars", **HOW)
    with pytest.raises(CannotSync, match="n is of type bigint"):
        sync(source, target, "t", mode="timestamp", timestamp_column="n")
