"""The load on the source is limited as asked, and reported."""

import time

import pytest

from replica_platform.xmin import sync, sync_group
from replica_platform.xmin.errors import CannotSync
from replica_platform.xmin.reports import TableSpec
from replica_platform_tests.xmin.helpers import execute, rows

SESSIONS = """select count(*) from pg_stat_activity where datname = 'xmin_source'
    and application_name = 'replica_platform xmin'"""


@pytest.fixture
def table(source: str) -> None:
    execute(
        source,
        "create table t (id int primary key, x text)",
        "insert into t select i, repeat('x', 300) from generate_series(1, 20000) i",
    )


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(("limit", "most"), [(None, 4), (1, 1), (2, 2)])
def test_no_more_connections_than_allowed(
    limit: int | None, most: int, source: str, target: str
) -> None:
    seen: list[int] = []
    report = sync(
        source,
        target,
        "t",
        workers=4,
        batch_bytes=65536,
        max_source_connections=limit,
        progress=lambda *_: seen.append(rows(source, SESSIONS)[0][0]),
    )
    assert max(seen) == report.source_connections == most
    execute(source, "update t set x = '' where id = 5")
    report = sync(source, target, "t", workers=4, batch_bytes=1 << 20, max_source_connections=limit)
    assert report.mode == "scan"
    assert report.source_connections <= most


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("limits", [{}, {"max_source_fraction": 0.2}])
def test_sessions_pause_as_long_as_asked(
    limits: dict[str, float], source: str, target: str
) -> None:
    began = time.monotonic()
    report = sync(source, target, "t", workers=1, batch_bytes=65536, **limits)  # type: ignore[arg-type]
    seconds = time.monotonic() - began
    assert 0 < report.source_busy_s < seconds
    if limits:
        assert report.source_busy_s <= 0.21 * seconds
        assert report.seconds_by_step["copy"] >= 4.5 * report.source_busy_s
    else:  # the control
        assert report.source_busy_s > 0.8 * report.seconds_by_step["copy"]


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_source_fraction": 0}, "max_source_fraction is above 0"),
        ({"max_source_fraction": 1.5}, "max_source_fraction is above 0"),
        ({"max_source_connections": 0}, "max_source_connections is at least 1"),
    ],
)
def test_limits_that_are_none_are_refused(
    limits: dict[str, float], sentence: str, source: str, target: str
) -> None:
    with pytest.raises(CannotSync, match=sentence):
        sync_group(source, target, [TableSpec("t")], **limits)  # type: ignore[arg-type]
