"""dagster-celery's own worker, for the controls: its tasks with a Redis that also keeps results."""

import os

from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_execute_job_task, create_resume_job_task

BROKER = os.environ["REPLICA_BROKER_URL"]
app = make_app(
    {
        "broker": BROKER,
        "backend": BROKER,
        "config_source": {
            "broker_connection_retry_on_startup": True,
            "worker_prefetch_multiplier": 1,
            "worker_redirect_stdouts": False,
        },
    }
)
execute_job = create_execute_job_task(app)
resume_job = create_resume_job_task(app)
