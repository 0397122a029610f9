"""Removal of old runs from Dagster's database, on both of its storages, and what stays."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import sqlalchemy as sa
import yaml
from dagster._core.instance import RUNLESS_RUN_ID
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Evaluations
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
from dagster._core.storage.runs.schema import RunsTable

from replica_platform.app import housekeeping
from replica_platform.app.housekeeping import remove_old
from replica_platform_tests.defs.test_alerts import add_tick

NODES = dg.StaticPartitionsDefinition(["one", "two"])


@dg.asset
def table() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"rows": 7})


@dg.asset_check(asset=table)
def is_good() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@dg.asset(partitions_def=NODES)
def outbox() -> None: ...


DEFINITIONS = dg.Definitions(
    assets=[table, outbox],
    asset_checks=[is_good],
    jobs=[
        dg.define_asset_job("tables", selection=[table]),
        dg.define_asset_job("outboxes", selection=[outbox]),
    ],
)


@pytest.fixture(params=["sqlite", "postgres"])
def instance(
    request: pytest.FixtureRequest, database: Callable[[str], str], tmp_path: Path
) -> Iterator[dg.DagsterInstance]:
    given: dict[str, object] = {"telemetry": {"enabled": False}}
    if request.param == "postgres":
        given["storage"] = {"postgres": {"postgres_url": database("dagster")}}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(given))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        if request.param == "postgres":
            instance.optimize_for_webserver(60_000, 3600, 5)  # keeps connections open
        yield instance


def run(instance: dg.DagsterInstance, job: str = "tables", partition: str | None = None) -> str:
    result = DEFINITIONS.resolve_job_def(job).execute_in_process(
        instance=instance, partition_key=partition
    )
    return result.run_id


def age(instance: dg.DagsterInstance, run_ids: list[str], days: float) -> None:
    """Set back when runs were created."""
    moment = (datetime.now(UTC) - timedelta(days=days)).replace(tzinfo=None)
    with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
        connection.execute(
            sa.update(RunsTable)
            .where(RunsTable.c.run_id.in_(run_ids))
            .values(create_timestamp=moment)
        )


def count(instance: dg.DagsterInstance, table: sa.Table, **equal: str) -> int:
    where = [table.c[name] == value for name, value in equal.items()]
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        found = connection.execute(sa.select(sa.func.count()).select_from(table).where(*where))
        return int(found.scalar_one())


def files(instance: dg.DagsterInstance, run_id: str) -> list[Path]:
    """Return the files and folders of a run."""
    return [path for path in Path(instance.root_directory).rglob("*") if run_id in path.name]


def test_old_runs_go_with_all_that_is_theirs(instance: dg.DagsterInstance) -> None:
    old, newer, newest = run(instance), run(instance), run(instance)
    age(instance, [old], 15)
    age(instance, [newer], 13)
    assert files(instance, old)
    removed = remove_old(instance, 14)
    assert (removed.runs, removed.kept_runs, removed.complete) == (1, 0, True)
    assert {one.run_id for one in instance.get_runs()} == {newer, newest}
    assert instance.all_logs(newer)
    assert count(instance, Events, run_id=old) == 0
    assert count(instance, Evaluations, run_id=old) == 0
    assert count(instance, Evaluations, run_id=newer) == 1
    assert files(instance, old) == []


def test_what_a_page_shows_of_an_asset_stays(instance: dg.DagsterInstance) -> None:
    runs = [run(instance), run(instance)]
    nodes = [run(instance, "outboxes", node) for node in ("one", "two", "one")]
    age(instance, [*runs, *nodes], 400)
    removed = remove_old(instance, 14)
    assert (removed.runs, removed.kept_runs) == (2, 3)
    assert {one.run_id for one in instance.get_runs()} == {runs[1], *nodes[1:]}
    shown = instance.get_latest_materialization_event(table.key)
    assert shown is not None
    assert shown.asset_materialization is not None
    assert shown.asset_materialization.metadata["rows"].value == 7
    assert instance.get_materialized_partitions(outbox.key) == {"one", "two"}
    graph = DEFINITIONS.resolve_asset_graph()
    (check,) = graph.asset_check_keys
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key([check])
    assert found[check].run_id == runs[1]
    assert "2 runs and 0 other events removed; 3 old runs stay" in removed.sentence


def test_a_run_that_goes_on_is_not_touched(instance: dg.DagsterInstance) -> None:
    job = DEFINITIONS.resolve_job_def("tables")
    going = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    run(instance)
    age(instance, [going.run_id], 400)
    assert remove_old(instance, 14).runs == 0
    assert instance.get_run_by_id(going.run_id) is not None


def test_events_without_a_run_go_but_the_newest_of_each_asset(
    instance: dg.DagsterInstance,
) -> None:
    for _ in range(3):
        instance.report_runless_asset_event(dg.AssetMaterialization("others_table"))
    assert remove_old(instance, 14).other_events == 0
    assert remove_old(instance, 0).other_events == 2
    assert count(instance, Events, run_id=RUNLESS_RUN_ID) == 1
    assert instance.get_latest_materialization_event(dg.AssetKey("others_table")) is not None


def test_old_ticks_go(instance: dg.DagsterInstance) -> None:
    add_tick(instance, "fds_sync", TickStatus.SUCCESS)
    (state,) = instance.all_instigator_state()
    remove_old(instance, 14)
    assert len(instance.get_ticks(state.instigator_origin_id, state.selector_id)) == 1
    remove_old(instance, 0)
    assert instance.get_ticks(state.instigator_origin_id, state.selector_id) == []


def test_a_removal_that_takes_long_goes_on_the_next_time(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "PAGE", 2)
    runs = [run(instance) for _ in range(5)]
    age(instance, runs, 20)
    stopped = remove_old(instance, 14, budget_s=-1)
    assert (stopped.runs, stopped.complete) == (0, False)
    assert "the next run goes on" in stopped.sentence
    assert remove_old(instance, 14).runs == 4


def test_the_database_stops_growing(database: Callable[[str], str], tmp_path: Path) -> None:
    dsn = database("dagster")
    (tmp_path / "dagster.yaml").write_text(
        yaml.safe_dump({"storage": {"postgres": {"postgres_url": dsn}}})
    )

    def day(instance: dg.DagsterInstance, *, clean: bool) -> int:
        """Run for a day, remove what is older than a day and a half; return the rows."""
        runs = [run.run_id for run in instance.get_runs()]
        ages.update({run_id: ages.get(run_id, 0) + 1 for run_id in runs})
        for days in set(ages.values()):
            age(instance, [run_id for run_id, its in ages.items() if its == days], days)
        ages.update({run(instance): 0 for _ in range(2)})
        if clean:
            remove_old(instance, 1.5)
        with psycopg.connect(dsn, autocommit=True) as connection:
            return sum(
                connection.execute(f"select count(*) from {name}").fetchone()[0]  # type: ignore[index]
                for name in ("event_logs", "runs", "run_tags", "asset_check_executions")
            )

    ages: dict[str, int] = {}
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        instance.optimize_for_webserver(60_000, 3600, 5)  # keeps connections open
        rows = [day(instance, clean=True) for _ in range(5)]
        assert len(set(rows[2:])) == 1
        # The control: without the removal each day adds the same.
        grown = [day(instance, clean=False) for _ in range(2)]
        assert grown[1] - grown[0] == grown[0] - rows[-1] > 30
