"""Whether a run still has a worker, by real heartbeats in a real database of Dagster."""

import os
import time
from collections.abc import Callable, Iterator

import dagster as dg
import psycopg
import pytest
from dagster._core.launcher import WorkerStatus

from replica_platform.app.hosts import Heartbeats
from replica_platform.cluster import launcher as module
from replica_platform.cluster.launcher import HostRunLauncher

TASK = "run:a:1"
RUN = dg.DagsterRun(
    job_name="drain",
    tags={"dagster-celery/task_id": TASK, "dagster-celery/queue": "a"},
)
QUICK_S = 0.2


@pytest.fixture
def heartbeats(
    database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Heartbeats]:
    dsn = database("dagster")
    monkeypatch.setenv("REPLICA_DAGSTER_DSN", dsn)
    for name in ("SEEN_S", "UNLISTED_S", "SILENT_FOR_S"):
        monkeypatch.setattr(module, name, QUICK_S)
    found = Heartbeats(dsn)
    found.prepare()
    yield found
    found.close()


@pytest.fixture
def launcher(heartbeats: Heartbeats) -> Iterator[HostRunLauncher]:
    found = HostRunLauncher("redis://127.0.0.1:1/0")
    yield found
    found.dispose()


def beat(heartbeats: Heartbeats, *tasks: str, host: str = "a") -> None:
    heartbeats.beat(f"{host}-1@vm", host=host, queues=[host, "a"], processes=2, tasks=tasks)


def health(launcher: HostRunLauncher) -> tuple[WorkerStatus, str]:
    """Return what Dagster's monitor is told after a pause."""
    time.sleep(3 * QUICK_S)
    found = launcher.check_run_worker_health(RUN)
    return found.status, found.msg or ""


def test_a_run_that_its_worker_lists(heartbeats: Heartbeats, launcher: HostRunLauncher) -> None:
    launcher.check_run_worker_health(RUN)
    beat(heartbeats, TASK)
    assert health(launcher) == (WorkerStatus.RUNNING, "")


@pytest.mark.parametrize("others", [(), ("b",), ("b", "c")])
def test_a_run_that_began_after_the_last_heartbeat(
    heartbeats: Heartbeats, launcher: HostRunLauncher, others: tuple[str, ...]
) -> None:
    for host in ("a", *others):
        beat(heartbeats, host=host)
    launcher.check_run_worker_health(RUN)
    # No worker was heard since: it may execute the run.
    assert health(launcher) == (WorkerStatus.RUNNING, "")
    for host in others:
        beat(heartbeats, host=host)
    assert health(launcher) == (WorkerStatus.RUNNING, "")
    # It was heard, and does not execute it.
    beat(heartbeats)
    status, why = health(launcher)
    assert status == WorkerStatus.FAILED
    assert "No worker of a executes this run any more" in why


def test_a_host_that_dies_before_it_lists_a_run(
    heartbeats: Heartbeats, launcher: HostRunLauncher
) -> None:
    beat(heartbeats)
    launcher.check_run_worker_health(RUN)
    with psycopg.connect(os.environ["REPLICA_DAGSTER_DSN"]) as connection:
        connection.execute("update replica_worker set beat_at = now() - interval '11 s'")
    status, why = health(launcher)
    assert status == WorkerStatus.FAILED
    assert "a: its worker is silent since" in why
