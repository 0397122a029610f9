"""Ticks of every component's schedules and sensors, for one, two and five entries."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster.components import Component

from replica_platform.app.entries import FileEntry, TableEntry
from replica_platform.components import (
    DuckDBReplica,
    PurposeReplicas,
    SqliteBackups,
    WorkerOutboxes,
    XminTables,
)
from replica_platform.io_managers.published_replica import PublishedReplicaIOManager
from replica_platform.outbox import Outbox
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase

COUNTS = [1, 2, 5]
AT = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)


def outboxes(count: int) -> Component:
    return WorkerOutboxes(nodes={f"node{n}": f"outbox{n}" for n in range(count)})


def tables(count: int) -> Component:
    return XminTables(tables=[TableEntry(table=f"public.t{n}") for n in range(count)])


def backups(count: int) -> Component:
    return SqliteBackups(files=[FileEntry(path=f"f{n}.db") for n in range(count)])


def pulled(count: int) -> Component:
    files = [FileEntry(path=f"f{n}.db", pulled_from=f"ssh://u@h/f{n}.db") for n in range(count)]
    return SqliteBackups(files=files)


def purposes(count: int) -> Component:
    part = {"tables": {"watchlist": {"columns": ["symbol"], "left_out": ["name"]}}}
    return PurposeReplicas(purposes={f"p{n}": part for n in range(count)})


def replicas(count: int) -> Component:
    part = {"tables": {"t": {"columns": ["a"], "left_out": "all"}}}
    return DuckDBReplica(name="shop", purposes={f"p{n}": part for n in range(count)})


ALL = [outboxes, tables, backups, pulled, purposes, replicas]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def resources(tmp_path: Path) -> dict[str, object]:
    platform = PlatformConfig(data_dir=str(tmp_path), backup_dir=str(tmp_path / "backups"))
    return {
        "platform": platform,
        "source": PostgresDatabase("postgresql://nowhere"),
        "target": PostgresDatabase("postgresql://nowhere"),
        "published_replica": PublishedReplicaIOManager(platform=platform),
    }


def loaded(
    component: Component, resources: dict[str, object], path: Path
) -> dg.RepositoryDefinition:
    class Context:
        pass

    context = Context()
    context.path = path  # type: ignore[attr-defined]
    definitions = component.build_defs(context)  # type: ignore[arg-type]
    return dg.Definitions.merge(
        definitions, dg.Definitions(resources=resources)
    ).get_repository_def()


def assert_runs_can_start(
    repository: dg.RepositoryDefinition, requests: list[dg.RunRequest]
) -> None:
    """Assert that each of several requests has a key, and that no asset needs a partition."""
    keys = [request.run_key for request in requests]
    if len(requests) > 1:
        assert None not in keys
        assert len(set(keys)) == len(keys)
    for key in repository.asset_graph.materializable_asset_keys:
        assert repository.asset_graph.get(key).partitions_def is None


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("component", ALL)
def test_every_schedule_requests_runs_at_every_tick(
    component: Callable[[int], Component],
    count: int,
    instance: dg.DagsterInstance,
    resources: dict[str, object],
    tmp_path: Path,
) -> None:
    repository = loaded(component(count), resources, tmp_path)
    expected = 2 if component is replicas else 1  # of the replica and of its purposes
    assert len(repository.schedule_defs) == expected
    for schedule in repository.schedule_defs:
        keys = set()
        for tick in (AT, AT + timedelta(minutes=5)):
            with dg.build_schedule_context(
                instance=instance,
                scheduled_execution_time=tick,
                repository_def=repository,
                resources=resources,
            ) as context:
                data = schedule.evaluate_tick(context)
            requests = list(data.run_requests or [])
            assert len(requests) == (count if component is outboxes else 1)
            assert_runs_can_start(repository, requests)
            keys |= {request.run_key for request in requests}
        # A key that was used before would start nothing.
        assert None in keys or len(keys) == 2 * len(requests)


def sensors(repository: dg.RepositoryDefinition) -> list[dg.SensorDefinition]:
    """Return the sensors without the one that Dagster adds for automation conditions."""
    automatic = dg.AutomationConditionSensorDefinition
    return [one for one in repository.sensor_defs if not isinstance(one, automatic)]


def test_all_but_tables_have_a_sensor(resources: dict[str, object], tmp_path: Path) -> None:
    found = {one: sensors(loaded(one(2), resources, tmp_path)) for one in ALL}
    assert [one for one, some in found.items() if not some] == [tables]


@pytest.mark.parametrize("count", COUNTS)
def test_the_sensor_requests_one_run_for_the_same_records(
    count: int, instance: dg.DagsterInstance, resources: dict[str, object], tmp_path: Path
) -> None:
    repository = loaded(outboxes(count), resources, tmp_path)
    sensor = repository.get_sensor_def("outbox_backlog")

    def tick(cursor: str | None) -> tuple[list[dg.RunRequest], str | None]:
        with dg.build_sensor_context(
            instance=instance, cursor=cursor, repository_def=repository, resources=resources
        ) as context:
            data = sensor.evaluate_tick(context)
        requests = list(data.run_requests or [])
        assert_runs_can_start(repository, requests)
        return requests, data.cursor

    for n in range(count):
        with Outbox(tmp_path / f"outbox{n}" / "worker-1.db") as outbox:
            outbox.append("note", {"n": n})
    first, cursor = tick(None)
    assert len(first) == count
    assert tick(cursor)[0] == []
    with Outbox(tmp_path / "outbox0" / "worker-1.db") as outbox:
        outbox.append("note", {"n": "another"})
    again, _ = tick(cursor)
    # The other nodes' requests are the same as before, so Dagster starts only one run.
    assert {one.run_key for one in again} - {one.run_key for one in first} == {again[0].run_key}
