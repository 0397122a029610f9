"""A Celery worker whose tasks have a soft time limit that passes while the file is locked.

A task notes its ids in ACKNOWLEDGED once they are saved, as a client would that got an answer.
With NAIVE=1 it saves as the outbox once did: `begin` stands outside of what cleans up.
"""

import os
import uuid
from functools import cache
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import Outbox

BROKER, FOLDER = Path(os.environ["BROKER_DIR"]), Path(os.environ["OUTBOX_DIR"])
MANY = 100  # above what one statement inserts
NAIVE = os.environ.get("NAIVE") == "1"

app = Celery("soft", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(BROKER / "queue"),
        "data_folder_out": str(BROKER / "queue"),
        "control_folder": str(BROKER / "control"),
        "store_processed": False,
        "polling_interval": 0.01,
    },
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
)


class NaiveOutbox:
    """One row by one statement, several in a transaction that a signal may leave open."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._db.execute("create table if not exists record (id text)")

    def append(self, kind: str, record: dict[str, Any], id: str) -> None:
        self._db.execute("insert into record values (?)", [id])

    def append_many(self, kind: str, records: list[Any], ids: list[str]) -> None:
        self._db.execute("begin immediate")
        try:
            self._db.executemany("insert into record values (?)", [(id,) for id in ids])
            self._db.execute("commit")
        except BaseException:
            self._db.execute("rollback")
            raise


@cache
def outbox() -> Any:
    """Return this process's outbox."""
    path = FOLDER / "worker-1.db"
    return NaiveOutbox(path) if NAIVE else Outbox(path)


def note(file: str, lines: list[str]) -> None:
    """Append lines to a file of the folder, with one write."""
    fd = os.open(FOLDER / file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, "".join(f"{line}\n" for line in lines).encode())
    os.close(fd)


@app.task(name="save_one", soft_time_limit=1)
def save_one() -> None:
    """Save one record."""
    save(1)


@app.task(name="save_many", soft_time_limit=1)
def save_many() -> None:
    """Save many in one transaction."""
    save(MANY)


def save(count: int) -> None:
    """Save records and note them, or note that the time was up."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    try:
        if count == 1:
            outbox().append("task", {"n": 1}, id=ids[0])
        else:
            outbox().append_many("task", [{"n": 1}] * count, ids=ids)
    except SoftTimeLimitExceeded:
        note("interrupted", [str(count)])
    else:
        note("acknowledged", ids)
