"""The run coordinator of a cluster: Dagster's own queue, which names the host of each run.

Dagster gives a run the tags of its job only, never those of its assets. So the tag is put on when
the run is submitted, before the queue looks at its limits. A queue takes as many runs as its live
workers have processes; runs of a host that is away wait in Dagster's queue, without a time limit.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.run_coordinator.queued_run_coordinator import RunQueueConfig
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.tags import MAX_RETRIES_TAG

from replica_platform.app.entries.base import HOST_TAG, environment_dsn
from replica_platform.app.hosts import CENTRAL, Heartbeats, Worker
from replica_platform.app.hosts.heartbeats import queue_of
from replica_platform.app.hosts.status import away, serving, start_it
from replica_platform.app.hosts.waiting import QUEUE_TAG
from replica_platform.cluster.broker import answers
from replica_platform.core.errors import TerminalError

# How long what was seen of workers and broker is used.
SEEN_S = 0.5
# How often the queue is looked at, in seconds; Dagster's own setting has whole seconds only.
DEQUEUE_EVERY_S = 0.25


class SeveralHosts(TerminalError):
    """The assets of one run live on several hosts."""


class PlacedRunCoordinator(QueuedRunCoordinator[Any]):
    """Dagster's queue of runs, with the host of each run as its Celery queue."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self._heartbeats: Heartbeats | None = None
        self._seen_at = float("-inf")
        self._limits: Sequence[Mapping[str, Any]] = ()
        self._closed: set[str] = set()

    @property
    def dequeue_interval_seconds(self) -> int:
        """How often the queue is looked at."""
        return DEQUEUE_EVERY_S  # type: ignore[return-value]

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Enqueue a run for the host of its assets.

        Raises:
            SeveralHosts: Its assets live on several hosts; it fails and is not retried.
        """
        run = context.dagster_run
        queue = run.tags.get(QUEUE_TAG)
        if queue is None:
            try:
                queue = host_of(context) or CENTRAL
            except SeveralHosts:
                # It would be refused as often as it is tried.
                self._instance.add_run_tags(run.run_id, {MAX_RETRIES_TAG: "0"})
                raise
            self._instance.add_run_tags(run.run_id, {QUEUE_TAG: queue})
        submitted = super().submit_run(context)
        self.tell_if_away(submitted, queue)
        return submitted

    def tell_if_away(self, run: DagsterRun, queue: str) -> bool:
        """Write into a run's log that its host is away, if it is; return whether it is."""
        live, last = serving(queue, self._workers())
        if not live:
            self._instance.report_engine_event(
                f"This run waits for a worker. {away(queue, last)} {start_it(queue)}", run
            )
        return not live

    def get_run_queue_config(self) -> RunQueueConfig:
        """Return the limits of Dagster's settings, and those of the queues as they are now."""
        config = super().get_run_queue_config()
        if time.monotonic() - self._seen_at > SEEN_S:
            self._limits = self._limits_now()
            self._seen_at = time.monotonic()
        limits = [*config.tag_concurrency_limits, *self._limits]
        return config._replace(tag_concurrency_limits=limits)

    def close_queue(self, queue: str) -> None:
        """Start no run of a queue until a worker serves it."""
        self._closed.add(queue)
        self._seen_at = float("-inf")

    def _limits_now(self) -> list[Mapping[str, Any]]:
        if not answers(os.environ.get("REPLICA_BROKER_URL", "")):
            return [{"key": QUEUE_TAG, "limit": 0}]
        found = limits(self._workers())
        self._closed -= {queue for queue, limit in found.items() if limit}
        found |= dict.fromkeys(self._closed, 0)
        return [{"key": QUEUE_TAG, "value": queue, "limit": n} for queue, n in found.items()]

    def dispose(self) -> None:
        """Close the connection to the heartbeats."""
        if self._heartbeats is not None:
            self._heartbeats.close()

    def _workers(self) -> list[Worker]:
        if self._heartbeats is None:
            self._heartbeats = Heartbeats(environment_dsn("REPLICA_DAGSTER_DSN"))
        return self._heartbeats.workers()


def limits(workers: Sequence[Worker]) -> dict[str, int]:
    """Return how many runs of each queue may be under way.

    A worker of several queues has its processes for all of them: what it executes of other queues
    is taken off, as far as its last heartbeat told.
    """
    found = {queue: 0 for worker in workers for queue in worker.queues}
    for worker in workers:
        if worker.live:
            for queue in worker.queues:
                others = sum(queue_of(task) != queue for task in worker.tasks)
                found[queue] += max(worker.processes - others, 0)
    return found


def host_of(context: SubmitRunContext) -> str | None:
    """Return the host that a run belongs to; None where neither job nor assets name one.

    Raises:
        SeveralHosts: Its assets live on several hosts.
    """
    run = context.dagster_run
    if HOST_TAG in run.tags:
        return run.tags[HOST_TAG]
    origin = run.remote_job_origin
    if origin is None:
        return None
    repository = context.workspace.get_code_location(origin.location_name).get_repository(
        origin.repository_origin.repository_name
    )
    graph = repository.asset_graph
    keys = run.asset_selection
    if keys is None and run.asset_check_selection is None:
        keys = graph.asset_keys_for_job(run.job_name)
    keys = {*(keys or ()), *(check.asset_key for check in run.asset_check_selection or ())}
    hosts = {
        graph.get(key).tags.get(HOST_TAG, CENTRAL): key.to_user_string()
        for key in sorted(keys)
        if graph.has(key)
    }
    if len(hosts) > 1:
        examples = ", ".join(f"{host} ({key})" for host, key in sorted(hosts.items()))
        raise SeveralHosts(
            f"The assets of this run live on several hosts: {examples}; materialise those of one "
            "host at a time."
        )
    return next(iter(hosts), None)
