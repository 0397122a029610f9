"""The worker of a host: it takes runs from its queues and executes them in forked processes.

Definitions are loaded before the processes fork, so that they share the memory. Each process keeps
its connections to Dagster's database. The parent writes heartbeats, and ends the process of a run
that was given up while the host was away.
"""

import importlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import psycopg
import sqlalchemy
from celery import Task, signals
from celery.worker import state
from dagster import DagsterInstance
from dagster._cli.api import _execute_run_command_body
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import unpack_value
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

from replica_platform.app.hosts import Heartbeats
from replica_platform.app.hosts.heartbeats import BEAT_EVERY_S, run_of
from replica_platform.app.launch import project_dir
from replica_platform.app.project import find_project
from replica_platform.app.runs import MAX_OVERFLOW, POOL_RECYCLE_S, STATEMENT_TIMEOUT_MS
from replica_platform.cluster.application import EXECUTE_RUN, make_application
from replica_platform.cluster.broker import assert_kept
from replica_platform.core.errors import PlatformError
from replica_platform.definitions import keep_definitions

log = logging.getLogger(__name__)

# A run that ends of itself is recorded as ended while its process still closes what it opened.
ENDED_SINCE_S = 5.0


def run_worker(
    host: str,
    queues: Sequence[str],
    *,
    broker: str,
    dsn: str,
    processes: int,
) -> int:
    """Execute runs of a host's queues until SIGTERM, which lets those that run end.

    Args:
        host: The name of the host, which is its first queue.
        queues: Further queues.
        broker: The address of the broker.
        dsn: Dagster's database.
        processes: How many runs are executed at a time.

    Returns:
        The exit code.

    Raises:
        NoBroker: The broker does not answer.
        ForgetfulBroker: The broker keeps nothing when it ends.
        CannotConnect: Dagster's database does not answer.
    """
    assert_kept(broker)
    heartbeats = Heartbeats(dsn)
    heartbeats.prepare()
    heartbeats.close()  # not shared with the processes that are forked
    os.environ |= {"DAGSTER_HOME": str(project_dir()), "REPLICA_HOST": host}
    load_definitions()
    application = make_application(broker)
    application.set_current()
    application.task(bind=True, name=EXECUTE_RUN)(execute_run)
    taken = list(dict.fromkeys([host, *queues]))
    worker = application.Worker(
        hostname=f"{host}-{os.getpid()}@{socket.gethostname()}",
        queues=taken,
        concurrency=processes,
        optimization="fair",
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    beats = Beats(heartbeats, worker, host, taken, processes)
    signals.worker_ready.connect(beats.start, weak=False)
    signals.worker_shutdown.connect(beats.finish, weak=False)
    worker.start()
    return int(worker.exitcode or 0)


def load_definitions() -> None:
    """Load the definitions of the working folder, as the runs will."""
    project = find_project()
    module = "replica_platform.definitions"
    if project is not None:
        sys.path.insert(0, str(project.folder))
        module = f"{project.module}.definitions"
    keep_definitions()
    defs = getattr(importlib.import_module(module), "defs", None)
    if callable(defs):
        defs().get_repository_def()


class Beats:
    """The heartbeats of this worker, written by a thread of the parent process."""

    def __init__(
        self, heartbeats: Heartbeats, worker: Any, host: str, queues: list[str], processes: int
    ) -> None:
        self._heartbeats = heartbeats
        self._worker = worker
        self._told = {
            "name": worker.hostname,
            "host": host,
            "queues": queues,
            "processes": processes,
            "version": version("replica_platform"),
        }
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeats", daemon=True)

    def start(self, **_: Any) -> None:
        """Begin, when the worker can take runs."""
        if not self._thread.is_alive():
            self._thread.start()

    def finish(self, **_: Any) -> None:
        """Tell that the worker ends in good order."""
        self._over.set()
        self._thread.join(BEAT_EVERY_S)
        with _kept_going():
            self._heartbeats.stop(self._told["name"])

    def _beat(self) -> None:
        while not self._over.is_set():
            with _kept_going():
                tasks = [request.id for request in tuple(state.reserved_requests)]
                self._heartbeats.beat(tasks=tasks, **self._told)
                self._end_given_up()
            self._over.wait(BEAT_EVERY_S)

    def _end_given_up(self) -> None:
        """End the processes of runs that are recorded as ended.

        While this host was silent, its runs were given up, and may run elsewhere by now.
        """
        active = {run_of(request.id): request for request in tuple(state.active_requests)}
        for run_id in self._heartbeats.ended(list(active), since_s=ENDED_SINCE_S):
            log.warning("Run %s was given up while this host was away; its process ends.", run_id)
            active[run_id].terminate(self._worker.pool, signal="KILL")


@contextmanager
def _kept_going() -> Iterator[None]:
    """Log that Dagster's database does not answer, and go on."""
    try:
        yield
    except (psycopg.Error, PlatformError) as error:
        log.warning("No heartbeat: %s", " ".join(str(error).split()))


_kept: list[DagsterInstance] = []


def _instance() -> DagsterInstance:
    """Return Dagster's instance with connections that are kept for the next run."""
    if not _kept:
        instance = DagsterInstance.get()
        instance.optimize_for_webserver(STATEMENT_TIMEOUT_MS, POOL_RECYCLE_S, MAX_OVERFLOW)
        _kept.append(instance)
    return _kept[0]


def execute_run(task: Task, packed: Any) -> int:
    """Execute a run, if this is the newest task of it."""
    run_id = unpack_value(packed, as_type=ExecuteRunArgs).run_id
    instance = _instance()
    try:
        run = instance.get_run_by_id(run_id)
    except sqlalchemy.exc.DBAPIError:  # the server has closed the kept connections
        run = instance.get_run_by_id(run_id)
    newest = run.tags.get(DAGSTER_CELERY_TASK_ID_TAG) if run else None
    if run is None or newest != task.request.id:
        log.warning("Ignored task %s: the newest one of its run is %s.", task.request.id, newest)
        return 0
    instance.report_engine_event(f"Taken by the worker {task.request.hostname}.", run)
    with _terminable():
        return _execute_run_command_body(
            run_id, instance, write_stream_fn=lambda _: None, set_exit_code_on_failure=True
        )


@contextmanager
def _terminable() -> Iterator[None]:
    """Keep Celery's handler of SIGTERM, which Dagster replaces while a step runs."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
