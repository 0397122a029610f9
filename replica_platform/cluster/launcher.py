"""dagster-celery's run launcher, which knows when the worker of a run is dead.

That launcher believes Celery's result backend, where a run whose host lost power stays started for
ever, and a run whose result was lost counts as failed while it goes on. Here the workers'
heartbeats tell, which are in Dagster's own database, and there is no result backend.
"""

import time
from collections.abc import Mapping
from typing import Any, Self
from uuid import uuid4

from celery import Celery
from dagster import StringSource
from dagster._config import Field
from dagster._core.events import DagsterEvent
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.storage.dagster_run import DagsterRun
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClassData, pack_value
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_QUEUE_TAG, DAGSTER_CELERY_TASK_ID_TAG
from kombu.exceptions import OperationalError

from replica_platform.app.entries.base import environment_dsn
from replica_platform.app.hosts import CENTRAL, Heartbeats, Worker
from replica_platform.app.hosts.status import away, serving
from replica_platform.cluster.application import EXECUTE_RUN, make_application
from replica_platform.cluster.placement import PlacedRunCoordinator

# How long what was read of the heartbeats is used: one look serves a round of the monitor.
SEEN_S = 1.0
# A worker that lives and does not list a run may have listed it a moment later.
UNLISTED_S = 5.0
# A worker that is silent may speak again: added to the time after which it counts as silent.
SILENT_FOR_S = 10.0


class HostRunLauncher(CeleryRunLauncher):
    """Sends each run to the queue of its host; a run that no worker knows any more has failed."""

    def __init__(
        self,
        broker: str,
        default_queue: str = CENTRAL,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        self._broker = broker
        super().__init__(default_queue=default_queue, broker=broker, inst_data=inst_data)
        self.celery: Celery = make_application(broker)
        self._heartbeats: Heartbeats | None = None
        self._seen_at, self._seen = float("-inf"), list[Worker]()
        self._missing: dict[str, float] = {}

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Return the settings in `dagster.yaml`."""
        return {
            "broker": Field(StringSource, description="The address of the broker, a Redis."),
            "default_queue": Field(
                StringSource,
                is_required=False,
                default_value=CENTRAL,
                description="The queue of a run that names none.",
            ),
        }

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> Self:
        """Return the launcher that `dagster.yaml` describes."""
        return cls(inst_data=inst_data, **config_value)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Send a run to its queue; enqueue it again if no worker serves that or the broker is away.

        Its tag with the task comes first: a worker executes a run only for the newest task.
        """
        run = context.dagster_run
        queue = run.tags.get(DAGSTER_CELERY_QUEUE_TAG, self.default_queue)
        if self._waits(run, queue):
            return
        task_id = f"{run.run_id}:{queue}:{uuid4().hex[:8]}"
        self._instance.add_run_tags(run.run_id, {DAGSTER_CELERY_TASK_ID_TAG: task_id})
        arguments = ExecuteRunArgs(
            job_origin=run.job_code_origin,  # type: ignore[arg-type]
            run_id=run.run_id,
            instance_ref=None,
            set_exit_code_on_failure=True,
        )
        try:
            self.celery.send_task(
                EXECUTE_RUN,
                args=[pack_value(arguments)],
                task_id=task_id,
                queue=queue,
                retry_policy={"max_retries": 1, "interval_start": 0.2},
            )
        except OperationalError:
            self._enqueue_again(run, "The broker does not answer; this run waits for it.")
            return
        self._instance.report_engine_event(
            f"Sent to the queue {queue} as task {task_id}.", run, cls=self.__class__
        )

    def _waits(self, run: DagsterRun, queue: str) -> bool:
        """Return whether the queue has no worker; the run then waits in Dagster's queue."""
        live, last = serving(queue, self._workers())
        if live:
            return False
        coordinator = self._instance.run_coordinator
        if isinstance(coordinator, PlacedRunCoordinator):
            coordinator.close_queue(queue)
        self._enqueue_again(run, f"This run waits for a worker. {away(queue, last)}")
        return True

    def _enqueue_again(self, run: DagsterRun, why: str) -> None:
        self._instance.report_engine_event(why, run, cls=self.__class__)
        self._instance.report_dagster_event(DagsterEvent.job_enqueue(run), run_id=run.run_id)

    def terminate(self, run_id: str) -> bool:
        """Ask the worker of a run to end its process; return whether there was one to ask."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or DAGSTER_CELERY_TASK_ID_TAG not in run.tags or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        self.celery.control.revoke(run.tags[DAGSTER_CELERY_TASK_ID_TAG], terminate=True)
        return True

    @property
    def supports_resume_run(self) -> bool:
        """False: a run is retried as a new one, from the step that had not ended."""
        return False

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Return whether a live worker executes a run; failed if none does for long enough."""
        task = run.tags.get(DAGSTER_CELERY_TASK_ID_TAG, "")
        queue = run.tags.get(DAGSTER_CELERY_QUEUE_TAG, self.default_queue)
        workers = self._workers()
        owner = next((worker for worker in workers if task in worker.tasks), None)
        if owner is not None and owner.live:
            self._missing.pop(task, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        live, last = serving(queue, workers)
        since = self._missing.setdefault(task, time.monotonic())
        missing_s = time.monotonic() - since
        if owner is None and live:
            # What a worker has begun since its last heartbeat is not in it.
            told = all(worker.beat_age_s + SEEN_S < missing_s for worker in live)
            gone = told and missing_s >= UNLISTED_S
            why = f"No worker of {queue} executes this run any more: its process died."
        else:
            gone = missing_s >= SILENT_FOR_S
            why = away(queue, owner or last)
        if not gone:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        del self._missing[task]
        return CheckRunHealthResult(WorkerStatus.FAILED, f"{why} It is retried if it may be.")

    def get_run_worker_debug_info(
        self, run: DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        """Return in words what is known of the worker of a run."""
        queue = run.tags.get(DAGSTER_CELERY_QUEUE_TAG, self.default_queue)
        live, last = serving(queue, self._workers())
        if not live:
            return away(queue, last)
        return f"Workers of {queue}: {', '.join(worker.name for worker in live)}."

    def dispose(self) -> None:
        """Close the connection to the heartbeats."""
        if self._heartbeats is not None:
            self._heartbeats.close()

    def _workers(self) -> list[Worker]:
        if self._heartbeats is None:
            self._heartbeats = Heartbeats(environment_dsn("REPLICA_DAGSTER_DSN"))
        if time.monotonic() - self._seen_at > SEEN_S:
            self._seen = self._heartbeats.workers()
            self._seen_at = time.monotonic()
        return self._seen
