"""A watched group of tables: a run goes on for its time, and reports each table once."""

import threading
import time

import dagster as dg
from dagster.components.core.component_tree import ComponentTree

from replica_platform.app.entries import TableEntry
from replica_platform.components import XminTables
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase
from replica_platform_tests.xmin.helpers import execute, rows


def test_a_watched_group_reports_once(source: str, target: str) -> None:
    execute(source, "create table t (id int primary key)", "insert into t values (1)")
    component = XminTables(
        tables=[TableEntry(table="t", mode="blocks")],
        name="seen",
        into="copy",
        watch_s=8.0,
        prove_within_s=None,
    )
    definitions = component.build_defs(ComponentTree.for_test().load_context)

    def write() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if rows(target, "select to_regclass('copy.t') is not null") == [(True,)]:
                break
            time.sleep(0.05)
        execute(source, "insert into t values (2)")

    writer = threading.Thread(target=write)
    writer.start()
    resources = {
        "platform": PlatformConfig(data_dir="", backup_dir=""),
        "source": PostgresDatabase(dsn=source),
        "target": PostgresDatabase(dsn=target),
    }
    bound = dg.Definitions.merge(definitions, dg.Definitions(resources=resources))
    with dg.DagsterInstance.ephemeral() as instance:
        assert bound.resolve_job_def("seen_sync").execute_in_process(instance=instance).success
        key = dg.AssetKey(["copy", "t"])
        events = instance.fetch_materializations(key, limit=10).records
    writer.join()
    (done,) = [event.asset_materialization for event in events]
    assert done
    metadata = {name: one.value for name, one in done.metadata.items()}
    assert metadata["syncs"] >= 2
    assert metadata["rows_moved"] == 2  # the first copy and what came later
    assert metadata["lag_p99_seconds"] < 60
    assert rows(target, "select id from copy.t order by id") == [(1,), (2,)]
