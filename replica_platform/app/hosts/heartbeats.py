"""The heartbeats of workers, in a table of Dagster's database."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg

from replica_platform.core.postgres import connect
from replica_platform.core.reports import ReportFields

BEAT_EVERY_S = 2.0
# A worker that writes no heartbeat for this long counts as silent.
SILENT_S = 10.0
# What is known of a worker that was replaced is removed after this time.
FORGOTTEN_AFTER = "7 days"

# The space of advisory locks that the platform's tables are created under, and this table.
_LOCK = (0x5250, 0x686F)
_SETUP = """
create table if not exists replica_worker (
    name text primary key,
    host text not null,
    queues text[] not null,
    processes integer not null,
    tasks text[] not null,
    version text not null,
    started_at timestamptz not null default now(),
    beat_at timestamptz not null default now(),
    stopped boolean not null default false
) with (fillfactor = 50)
"""
_BEAT = """
insert into replica_worker (name, host, queues, processes, tasks, version)
values (%(name)s, %(host)s, %(queues)s, %(processes)s, %(tasks)s, %(version)s)
on conflict (name) do update set
    host = excluded.host, queues = excluded.queues, processes = excluded.processes,
    tasks = excluded.tasks, version = excluded.version, beat_at = now(), stopped = false
"""
_STOP = "update replica_worker set stopped = true, beat_at = now(), tasks = '{}' where name = %s"
_FORGET = f"delete from replica_worker where beat_at < now() - interval '{FORGOTTEN_AFTER}'"
_READ = """
select name, host, queues, processes, tasks, version, stopped, beat_at,
    extract(epoch from clock_timestamp() - beat_at)::float8
from replica_worker order by host, name
"""
# A run that somebody else has ended: given up by the monitor, or cancelled.
_ENDED = """
select run_id from runs where run_id = any(%s) and status in ('FAILURE', 'CANCELED', 'SUCCESS')
    and end_time < extract(epoch from now()) - %s
"""


@dataclass(frozen=True)
class Worker(ReportFields):
    """A worker as its last heartbeat told.

    Attributes:
        name: Its name, unique among all workers.
        host: The host that it serves.
        queues: The queues that it takes runs from, that of its host first.
        processes: How many runs it executes at a time.
        tasks: What it executes or holds ready, each `RUN_ID:QUEUE:LAUNCH`.
        version: The version of the platform that it has loaded.
        stopped: Whether it said that it ends.
        beat_at: When it was heard last.
        beat_age_s: Seconds since then, by the clock of the database.
    """

    name: str
    host: str
    queues: Sequence[str]
    processes: int
    tasks: Sequence[str]
    version: str
    stopped: bool
    beat_at: datetime
    beat_age_s: float

    @property
    def live(self) -> bool:
        """Whether it can be given a run."""
        return not self.stopped and self.beat_age_s <= SILENT_S


class Heartbeats:
    """The table of workers, over one connection that is opened again after an error.

    Args:
        dsn: Dagster's database; a driver in its scheme (`postgresql+psycopg2://`) is ignored.
    """

    def __init__(self, dsn: str) -> None:
        scheme, separator, rest = dsn.partition("://")
        self._dsn = f"{scheme.split('+')[0]}{separator}{rest}"
        self._connection: psycopg.Connection | None = None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Create the table if it is absent, and remove workers that were replaced long ago."""
        with self._lock:
            connection = self._open()
            with connection.transaction():
                connection.execute("select pg_advisory_xact_lock(%s, %s)", _LOCK)
                connection.execute(_SETUP)
            connection.execute(_FORGET)

    def beat(
        self,
        name: str,
        *,
        host: str,
        queues: Sequence[str],
        processes: int,
        tasks: Sequence[str] = (),
        version: str = "",
    ) -> None:
        """Tell that a worker lives, and what it executes."""
        told = {
            "name": name,
            "host": host,
            "queues": list(queues),
            "processes": processes,
            "tasks": list(tasks),
            "version": version,
        }
        self._run(_BEAT, told)

    def stop(self, name: str) -> None:
        """Tell that a worker ends in good order."""
        self._run(_STOP, (name,))

    def workers(self) -> list[Worker]:
        """Return every worker that was ever heard of in the last days; none without a table."""
        try:
            return [Worker(*row) for row in self._run(_READ, ())]
        except psycopg.errors.UndefinedTable:
            return []

    def ended(self, run_ids: Sequence[str], *, since_s: float) -> set[str]:
        """Return which of these runs are recorded as ended for at least `since_s` seconds."""
        if not run_ids:
            return set()
        return {str(row[0]) for row in self._run(_ENDED, (list(run_ids), since_s))}

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _run(
        self, statement: LiteralString, parameters: Sequence[Any] | Mapping[str, Any]
    ) -> list[tuple[Any, ...]]:
        with self._lock:
            connection = self._open()
            try:
                cursor = connection.execute(statement, parameters)
                return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                self._drop()
                raise

    def _open(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._dsn, autocommit=True)
            # A heartbeat that a crash of the server loses is followed by the next one.
            self._connection.execute("set synchronous_commit = off")
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None


def run_of(task: str) -> str:
    """Return the run of a task."""
    return task.partition(":")[0]


def queue_of(task: str) -> str:
    """Return the queue that a task was sent to."""
    return task.partition(":")[2].partition(":")[0]
