"""Outboxes of one and several nodes, typed tables beside `outbox.record`, and the sensor."""

from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from replica_platform.components import WorkerOutboxes
from replica_platform.outbox import Outbox
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase

# The folders of nodes are absolute here.
PLATFORM = PlatformConfig(data_dir="/nowhere", backup_dir="/nowhere")
CONVERSATION = {
    "conversation": {
        "table": "public.conversations",
        "key": "id",
        "columns": ["id", "user_id", "message", "response"],
    }
}


def definitions(target: str, **attributes: object) -> dg.Definitions:
    outboxes = WorkerOutboxes(**attributes).build_defs(None)  # type: ignore[arg-type]
    resources = {"target": PostgresDatabase(target), "platform": PLATFORM}
    return dg.Definitions.merge(
        outboxes, dg.Definitions(resources=resources, executor=dg.in_process_executor)
    )


def drain(
    found: dg.Definitions, instance: dg.DagsterInstance, node: str | None = None
) -> dg.ExecuteInProcessResult:
    selected = [dg.AssetKey(["conversations", node])] if node else None
    return found.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, asset_selection=selected, raise_on_error=False
    )


def rows(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture
def nodes(tmp_path: Path) -> dict[str, str]:
    for node in ("east", "west"):
        (tmp_path / node).mkdir()
        with Outbox(tmp_path / node / "worker-1.db") as outbox:
            outbox.append("note", {"from": node})
    return {"east": str(tmp_path / "east"), "west": str(tmp_path / "west")}


def test_each_node_is_an_asset(target: str, nodes: dict[str, str]) -> None:
    found = definitions(target, nodes=nodes)
    with dg.DagsterInstance.ephemeral() as instance:
        assert drain(found, instance, "west").success
        assert rows(target, "select payload->>'from' from outbox.record") == [("west",)]
        assert drain(found, instance, "east").success
        assert rows(target, "select count(*) from outbox.record") == [(2,)]
        latest = instance.get_latest_materialization_events(
            [dg.AssetKey(["conversations", node]) for node in nodes]
        )
        assert all(latest.values())


def test_an_unreachable_node_does_not_hide_another(target: str, nodes: dict[str, str]) -> None:
    found = definitions(target, nodes=nodes | {"north": "/nowhere/north"})
    with dg.DagsterInstance.ephemeral() as instance:
        east = drain(found, instance, "east")
        north = drain(found, instance, "north")
    assert rows(target, "select payload->>'from' from outbox.record") == [("east",)]
    checks = east.get_asset_check_evaluations()
    assert len(checks) == 3
    assert all(one.passed for one in checks)
    (failure,) = (event for event in north.all_events if event.is_step_failure)
    assert "/nowhere/north" in str(failure.step_failure_data.user_failure_data.description)


def test_without_a_selection_every_node_is_drained(target: str, nodes: dict[str, str]) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert drain(definitions(target, nodes=nodes), instance).success
    assert rows(target, "select count(*) from outbox.record") == [(2,)]


def test_a_mapping_that_fails_loses_nothing(target: str, tmp_path: Path) -> None:
    found = definitions(target, nodes={"local": str(tmp_path)}, mappings=CONVERSATION)
    with Outbox(tmp_path / "worker-1.db") as outbox:
        outbox.append_many(
            "conversation",
            [{"id": n, "user_id": "ada", "message": "?", "response": "!"} for n in range(200)],
        )
    with dg.DagsterInstance.ephemeral() as instance:
        assert not drain(found, instance).success  # the bug: there is no such table
        with psycopg.connect(target) as connection:
            connection.execute(
                "create table public.conversations"
                " (id int primary key, user_id text, message text, response text)"
            )
        assert drain(found, instance).success
    assert rows(target, "select count(*) from public.conversations") == [(200,)]
    assert rows(target, "select count(*) from outbox.record") == [(200,)]


@pytest.mark.parametrize("several", [False, True])
def test_one_drain_is_requested_for_a_waiting_record(tmp_path: Path, several: bool) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    nodes = {"here": str(here), **({"there": str(there)} if several else {})}
    found = WorkerOutboxes(nodes=nodes).build_defs(None)  # type: ignore[arg-type]
    sensor, _ = found.sensors or []

    def tick(cursor: str | None) -> dg.SensorResult | dg.SkipReason:
        (answer,) = sensor(dg.build_sensor_context(cursor=cursor), platform=PLATFORM)  # type: ignore[operator]
        return answer

    with Outbox(here / "worker-1.db") as outbox:
        assert tick(None) == dg.SkipReason("Every record is delivered.")
        outbox.append("note", {"n": 1})
        first = tick(None)
        assert isinstance(first, dg.SensorResult)
        (request,) = first.run_requests or []
        key = ["conversations", "here"] if several else ["conversations"]
        assert request.asset_selection == [dg.AssetKey(key)]
        assert isinstance(tick(first.cursor), dg.SkipReason)
        outbox.append("note", {"n": 2})
        assert isinstance(tick(first.cursor), dg.SensorResult)


def test_the_documented_remedy_turns_nothing_is_missing_green(target: str, tmp_path: Path) -> None:
    """Operations: rows were deleted from the target; materialise, they are delivered again."""
    found = definitions(target, nodes={"local": str(tmp_path)})
    with Outbox(tmp_path / "worker-1.db") as outbox:
        outbox.append_many("note", [{"n": n} for n in range(10)])

    def is_green(result: dg.ExecuteInProcessResult) -> bool:
        checks = {one.check_name: one for one in result.get_asset_check_evaluations()}
        return checks["nothing_is_missing"].passed

    with dg.DagsterInstance.ephemeral() as instance:
        assert is_green(drain(found, instance))
        with psycopg.connect(target) as connection:
            connection.execute("delete from outbox.record where seq > 7")
        by_schedule = found.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, tags={"dagster/schedule_name": "outbox_drain"}, raise_on_error=False
        )
        assert not is_green(by_schedule)  # a scheduled drain compares ledgers only
        remedy = drain(found, instance)
        assert is_green(remedy)
    assert rows(target, "select count(*), count(distinct id) from outbox.record") == [(10, 10)]


@pytest.mark.parametrize("count", [1, 2])
def test_what_the_target_lost_is_sent_again_by_the_sensor(
    target: str, nodes: dict[str, str], count: int
) -> None:
    chosen = dict(list(nodes.items())[:count])
    found = definitions(target, nodes=chosen)
    repository = found.get_repository_def()
    with dg.DagsterInstance.ephemeral() as instance:

        def tick() -> list[dg.RunRequest]:
            with dg.build_sensor_context(instance=instance, repository_def=repository) as context:
                data = repository.get_sensor_def("outbox_repair").evaluate_tick(context)
            return list(data.run_requests or [])

        def run(key: dg.AssetKey, tags: Mapping[str, str] = {}) -> None:
            found.resolve_implicit_global_asset_job_def().execute_in_process(
                instance=instance,
                asset_selection=[key],
                tags={"dagster/sensor_name": "any", **tags},
                raise_on_error=False,
            )

        assert tick() == []  # never compared
        keys = [
            dg.AssetKey(["conversations", node] if count > 1 else ["conversations"])
            for node in chosen
        ]
        for key in keys:
            run(key)
        assert tick() == []
        with psycopg.connect(target) as connection:
            connection.execute("delete from outbox.record")
        run(keys[0])
        (request,) = tick()  # what one node lacks does not concern the others
        assert request.asset_selection == [keys[0]]
        for key in keys[1:]:
            run(key)
        requests = tick()
        assert [one.asset_selection for one in requests] == [[key] for key in keys]
        assert len({one.run_key for one in requests}) == count
        assert {one.run_key for one in tick()} == {one.run_key for one in requests}
        for one, key in zip(requests, keys, strict=True):
            run(key, one.tags)
        assert tick() == []
    assert rows(target, "select count(*), count(distinct id) from outbox.record") == [
        (count, count)
    ]


def test_no_repair_is_requested_of_a_target_that_does_not_answer(nodes: dict[str, str]) -> None:
    found = definitions("postgresql://nowhere.invalid/x", nodes={"east": nodes["east"]})
    repository = found.get_repository_def()
    with dg.DagsterInstance.ephemeral() as instance:
        check = dg.AssetSelection.checks_for_assets("conversations")
        job = dg.define_asset_job("checks", check)
        again = dg.Definitions.merge(found, dg.Definitions(jobs=[job]))
        checks = again.resolve_job_def("checks")
        ran = checks.execute_in_process(instance=instance, raise_on_error=False)
        red = {one.check_name for one in ran.get_asset_check_evaluations() if not one.passed}
        assert "nothing_is_missing" in red
        with dg.build_sensor_context(instance=instance, repository_def=repository) as context:
            data = repository.get_sensor_def("outbox_repair").evaluate_tick(context)
        assert not data.run_requests


def test_the_row_count_is_that_of_the_table(target: str, nodes: dict[str, str]) -> None:
    with dg.DagsterInstance.ephemeral() as instance:

        def shown() -> object:
            result = drain(definitions(target, nodes=nodes), instance)
            assert result.success
            made = [
                event.step_materialization_data.materialization.metadata["dagster/row_count"].value
                for event in result.get_asset_materialization_events()
            ]
            return made[-1]

        assert shown() == 2
        with psycopg.connect(target) as connection:
            connection.execute(
                "insert into outbox.record (select (jsonb_populate_record(r, jsonb_build_object("
                "'id', gen_random_uuid(), 'seq', 99))).* from outbox.record r limit 1)"
            )
        assert shown() == 3


def test_a_node_without_a_record_yet_is_well(target: str, tmp_path: Path) -> None:
    """The target has no table of records before the first one."""
    (tmp_path / "web").mkdir()
    found = definitions(target, nodes={"web": str(tmp_path / "web")})
    with dg.DagsterInstance.ephemeral() as instance:
        result = drain(found, instance)
    assert result.success, [event.message for event in result.all_events if event.is_failure]
    assert all(one.passed for one in result.get_asset_check_evaluations())
