"""A Celery worker whose conversations survive failures of Postgres and of the worker.

    celery -A examples.celery_worker worker --concurrency 4

A task saves its conversation in the worker's outbox file, which takes a fraction of a
millisecond, and is done. A drain delivers it (`replica drain --outbox data/outbox --target DSN
--watch` on the node, or the Dagster schedule). Each process of the pool claims its own file,
`worker-1.db`, `worker-2.db` and so on; the next process continues the file of a killed one. The
conversation's id is the record's id, so that a task that Celery runs twice is one conversation.

Settings: BROKER_URL (default: a folder), OUTBOX_DIR (default: data/outbox).
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_process_shutdown

from replica_platform.outbox import Outbox

BROKER_DIR = Path(os.environ.get("BROKER_DIR", "data/broker"))
OUTBOX_DIR = Path(os.environ.get("OUTBOX_DIR", "data/outbox"))

app = Celery("conversations", broker=os.environ.get("BROKER_URL", "filesystem://"))
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(BROKER_DIR / "queue"),
        "data_folder_out": str(BROKER_DIR / "queue"),
        "control_folder": str(BROKER_DIR / "control"),
        "store_processed": False,
    },
    # A task is acknowledged after it returned, and runs again if its worker died.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
)


@cache
def outbox() -> Outbox:
    """Return this process's outbox, opened by its first task, after Celery's fork."""
    return Outbox.claim(OUTBOX_DIR)


@worker_process_shutdown.connect
def close(**_: Any) -> None:
    if outbox.cache_info().currsize:
        outbox().close()


@app.task(name="save_conversation")
def save_conversation(id: str, user_id: int, message: str, response: str) -> None:
    """Save one conversation; it is on the disk when the task is done."""
    conversation = {"id": id, "user_id": user_id, "message": message, "response": response}
    outbox().append("conversation", conversation, id=id)
