"""The state of Dagster's daemon, ticks and runs, read from a database that Dagster wrote."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.scheduler.instigation import InstigatorType, TickData, TickStatus
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo

from replica_platform.app.scheduler import SchedulerStatus, scheduler_status


@pytest.fixture
def dsn(database: Callable[[str], str]) -> str:
    return database("dagster")


@pytest.fixture
def instance(dsn: str, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    storage = {"postgres": {"postgres_url": dsn}}
    (tmp_path / "dagster.yaml").write_text(
        yaml.safe_dump({"storage": storage, "telemetry": {"enabled": False}})
    )
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def tick(instance: dg.DagsterInstance, name: str, status: TickStatus, cause: str = "") -> None:
    inner = SerializableErrorInfo(f"ValueError: {cause}\n", [], "ValueError")
    error = SerializableErrorInfo("Error occurred\n", [], "Error", cause=inner)
    instance.create_tick(
        TickData(
            f"origin of {name}",
            name,
            InstigatorType.SCHEDULE,
            status,
            time.time(),
            selector_id=name,
            run_ids=[],
            error=error if cause else None,
        )
    )


def run(instance: dg.DagsterInstance, schedule: str, *, succeeds: bool) -> None:
    @dg.op
    def work() -> None:
        if not succeeds:
            raise ValueError("no")

    @dg.job
    def job() -> None:
        work()

    job.execute_in_process(
        instance=instance, raise_on_error=False, tags={"dagster/schedule_name": schedule}
    )


def test_an_empty_database_is_said(dsn: str) -> None:
    found = scheduler_status(dsn)
    assert found == SchedulerStatus()
    assert found.ok
    assert "No daemon has run here yet" in found.sentence


def test_the_drivers_name_in_the_scheme_is_ignored(dsn: str) -> None:
    assert scheduler_status(dsn.replace("postgresql://", "postgresql+psycopg2://")).ok


def test_a_daemon_that_is_silent_is_red(dsn: str, instance: dg.DagsterInstance) -> None:
    instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SENSOR", "d", []))
    found = scheduler_status(dsn)
    assert found.ok
    assert "The daemon runs" in found.sentence
    instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 7200, "SENSOR", "d", []))
    silent = scheduler_status(dsn)
    assert not silent.ok
    assert "The daemon ran last 2 hours ago" in silent.sentence


def test_a_failed_tick_is_red_until_the_next_one_succeeds(
    dsn: str, instance: dg.DagsterInstance
) -> None:
    tick(instance, "fds_sync", TickStatus.SUCCESS)
    tick(instance, "outbox_drain", TickStatus.FAILURE, "several RunRequests\nneed a run_key")
    found = scheduler_status(dsn)
    assert not found.ok
    assert found.failed_ticks == [
        "outbox_drain failed: ValueError: several RunRequests need a run_key"
    ]
    tick(instance, "outbox_drain", TickStatus.SKIPPED)
    assert scheduler_status(dsn).ok


def test_a_failed_run_is_red_until_the_next_one_succeeds(
    dsn: str, instance: dg.DagsterInstance
) -> None:
    run(instance, "fds_sync", succeeds=True)
    run(instance, "nightly_backups", succeeds=False)
    run(instance, "fds_sync", succeeds=True)
    found = scheduler_status(dsn)
    assert not found.ok
    (failed,) = found.failed_runs
    assert failed.startswith("nightly_backups (")
    run(instance, "nightly_backups", succeeds=True)
    assert scheduler_status(dsn).ok
