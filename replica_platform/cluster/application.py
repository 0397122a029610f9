"""The Celery application that launcher and workers share: its settings and the name of its task."""

from celery import Celery

EXECUTE_RUN = "replica_platform.execute_run"

# `task_acks_late` stays off: a run that is delivered a second time is ignored by Dagster, and its
# task then counts as done.
SETTINGS = {
    # Heartbeats and Dagster's database tell what became of a run.
    "task_ignore_result": True,
    # A run waits in Dagster's queue or at the broker, not in a worker that is busy.
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    # Otherwise Dagster's logs of what a run prints are empty.
    "worker_redirect_stdouts": False,
    "worker_hijack_root_logger": False,
    "worker_max_tasks_per_child": 500,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # Runs go on while the broker is away.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "broker_transport_options": {"socket_connect_timeout": 3, "socket_keepalive": True},
}


def make_application(broker: str) -> Celery:
    """Return the application with a broker, given as the address of a Redis."""
    application = Celery("replica_platform", broker=broker, set_as_current=False)
    application.conf.update(SETTINGS)
    return application
