"""What heartbeats tell, and the words for it, on a real database of Dagster."""

import re
import time
from collections.abc import Callable, Iterator

import dagster as dg
import psycopg
import pytest
from dagster._core.storage.dagster_run import DagsterRunStatus
from dagster_postgres import DagsterPostgresStorage

from replica_platform.app.hosts import Heartbeats, hosts_status
from replica_platform.app.hosts import heartbeats as module
from replica_platform.cluster.placement import limits


@pytest.fixture
def dsn(database: Callable[[str], str]) -> str:
    return database("dagster")


@pytest.fixture
def heartbeats(dsn: str) -> Iterator[Heartbeats]:
    found = Heartbeats(dsn)
    found.prepare()
    yield found
    found.close()


def beat(
    heartbeats: Heartbeats,
    host: str,
    *queues: str,
    tasks: tuple[str, ...] = (),
    version: str = "1",
) -> None:
    heartbeats.beat(
        f"{host}-1@vm", host=host, queues=[host, *queues], processes=2, tasks=tasks, version=version
    )


def age(dsn: str, host: str, seconds: float) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "update replica_worker set beat_at = now() - %s * interval '1 second' where host = %s",
            (seconds, host),
        )


def add_run(dsn: str, queue: str, status: DagsterRunStatus) -> str:
    """Record a run in Dagster's own tables, as its storage does."""
    storage = DagsterPostgresStorage(dsn.replace("postgresql://", "postgresql+psycopg2://"), True)
    run = dg.DagsterRun(
        job_name="drain", run_id=f"{queue}-{status.value}", status=status,
        tags={"dagster-celery/queue": queue},
    )  # fmt: skip
    storage.run_storage.add_run(run)
    return run.run_id


def test_before_any_worker(dsn: str) -> None:
    found = hosts_status(dsn)
    assert found.ok
    assert found.sentence == (
        "No host is named, and no worker has ever run; everything runs on one machine."
    )


def test_a_host_that_entries_name_and_nobody_serves(dsn: str) -> None:
    found = hosts_status(dsn, ["a"])
    assert not found.ok
    assert found.sentence == (
        "a: no worker has ever served it. Start it there with `replica worker --host a`."
    )


@pytest.mark.parametrize("hosts", [["a"], ["a", "b"], ["a", "b", "c", "d"]])
def test_every_host_that_lives(dsn: str, heartbeats: Heartbeats, hosts: list[str]) -> None:
    for host in hosts:
        beat(heartbeats, host)
    found = hosts_status(dsn, hosts)
    assert found.ok
    assert [host.name for host in found.hosts] == hosts
    assert "every host is there; 0 runs under way" in found.sentence


def test_a_silent_host_and_what_waits_for_it(dsn: str, heartbeats: Heartbeats) -> None:
    beat(heartbeats, "a")
    beat(heartbeats, "b")
    age(dsn, "b", 75)
    waiting = add_run(dsn, "b", DagsterRunStatus.NOT_STARTED)
    found = hosts_status(dsn)
    assert not found.ok
    a, b = found.hosts
    assert a.ok and not b.ok
    assert "b: its worker is silent since" in b.sentence
    assert re.search(r"7\d s ago|8\d s ago", b.sentence)
    assert f"1 run: drain ({waiting[:8]}) waits for it." in b.sentence
    assert "`replica worker --host b`" in b.sentence


def test_a_host_that_was_stopped_is_well_until_something_waits(
    dsn: str, heartbeats: Heartbeats
) -> None:
    beat(heartbeats, "a")
    heartbeats.stop("a-1@vm")
    assert hosts_status(dsn).ok
    add_run(dsn, "a", DagsterRunStatus.NOT_STARTED)
    found = hosts_status(dsn)
    assert not found.ok
    assert "a: its worker was stopped at" in found.sentence


def test_what_runs_where(dsn: str, heartbeats: Heartbeats) -> None:
    run = add_run(dsn, "shared", DagsterRunStatus.STARTED)
    beat(heartbeats, "a", "shared", tasks=(f"{run}:shared:1",))
    found = {host.name: host for host in hosts_status(dsn).hosts}
    assert [one.run_id for one in found["a"].running] == [run]
    assert f"runs drain ({run[:8]})" in found["a"].sentence


def test_different_versions_are_named(dsn: str, heartbeats: Heartbeats) -> None:
    beat(heartbeats, "a", version="1")
    beat(heartbeats, "b", version="2")
    found = hosts_status(dsn)
    assert not found.ok
    assert "different versions (1, 2)" in found.sentence


def test_a_queue_takes_what_its_live_workers_can(dsn: str, heartbeats: Heartbeats) -> None:
    beat(heartbeats, "a", "shared")
    beat(heartbeats, "b", "shared", tasks=("run:b:1",))
    beat(heartbeats, "c")
    age(dsn, "c", module.SILENT_S + 1)
    # b has one of its two processes left for what is shared.
    assert limits(heartbeats.workers()) == {"a": 2, "b": 2, "shared": 3, "c": 0}


def test_runs_that_were_given_up(dsn: str, heartbeats: Heartbeats) -> None:
    going, ended = (
        add_run(dsn, "a", s) for s in (DagsterRunStatus.STARTED, DagsterRunStatus.FAILURE)
    )
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "update runs set end_time = %s where run_id = %s", (time.time() - 20, ended)
        )
    assert heartbeats.ended([going, ended], since_s=5) == {ended}
    assert heartbeats.ended([going, ended], since_s=60) == set()
    assert heartbeats.ended([], since_s=5) == set()


def test_the_connection_comes_back(dsn: str, heartbeats: Heartbeats) -> None:
    beat(heartbeats, "a")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )
    with pytest.raises(psycopg.OperationalError):
        beat(heartbeats, "a")
    beat(heartbeats, "a")
    assert [worker.live for worker in heartbeats.workers()] == [True]
