"""The load on the source is limited as asked, and reported."""

import time
from pathlib import Path

import dagster as dg
import pytest
from dagster.components.core.component_tree import ComponentTree

from replica_platform.components import XminTables
from replica_platform.components.xmin_tables import TableEntry
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase
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


@pytest.mark.usefixtures("table")
def test_the_component_passes_on_the_limits(source: str, target: str, tmp_path: Path) -> None:
    component = XminTables(
        tables=[TableEntry(table="public.t")],
        into="copy",
        max_snapshot_s=0.000001,
        max_source_connections=1,
        max_source_fraction=0.5,
    )
    built = component.build_defs(ComponentTree.for_test().load_context)
    platform = PlatformConfig(
        data_dir=str(tmp_path), backup_dir=str(tmp_path), xmin_workers=4, xmin_batch_bytes=1 << 20
    )
    began = time.monotonic()
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [asset for asset in built.assets or [] if isinstance(asset, dg.AssetsDefinition)],
            resources={
                "platform": platform,
                "source": PostgresDatabase(dsn=source),
                "target": PostgresDatabase(dsn=target),
            },
            instance=instance,
        )
    seconds = time.monotonic() - began
    (made,) = result.get_asset_materialization_events()
    metadata = made.materialization.metadata
    assert metadata["source_connections"].value == 1
    busy = metadata["source_busy_seconds"].value
    assert isinstance(busy, float)
    assert busy <= 0.5 * seconds
    held = metadata["snapshot_seconds"].value
    assert isinstance(held, float)
    assert held < seconds
    assert rows(target, "select count(*) from copy.t") == [(20000,)]
