"""The runs that have not ended, read from Dagster's database without Dagster."""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from replica_platform.core.postgres import connect
from replica_platform.core.reports import ReportFields

# The tag that names the queue of a run, as dagster-celery reads it.
QUEUE_TAG = "dagster-celery/queue"
# So many are read; `total` counts the rest.
NEWEST = 1000

_THERE = "select to_regclass('runs') is not null"
_OPEN = """
select r.run_id, r.pipeline_name, q.value, r.status,
    extract(epoch from now() at time zone 'utc' - r.update_timestamp)::float8
from runs r left join run_tags q on q.run_id = r.run_id and q.key = %(tag)s
where r.status in ('QUEUED', 'NOT_STARTED', 'STARTING', 'STARTED', 'CANCELING')
order by r.id desc limit %(newest)s
"""


@dataclass(frozen=True)
class OpenRun(ReportFields):
    """A run that has not ended.

    Attributes:
        run_id: Its id.
        job: The name of its job.
        queue: The queue that it is sent to; None where its run coordinator names none.
        status: Its status, in Dagster's words.
        age_s: Seconds since the status changed.
    """

    run_id: str
    job: str
    queue: str | None
    status: str
    age_s: float

    @property
    def waits(self) -> bool:
        """Whether no worker has begun with it."""
        return self.status in {"QUEUED", "NOT_STARTED", "STARTING"}


def open_runs(dsn: str) -> Sequence[OpenRun]:
    """Return the newest runs that have not ended, newest first.

    Args:
        dsn: Dagster's database; a driver in its scheme is ignored.

    Raises:
        CannotConnect: The database does not answer.
    """
    scheme, separator, rest = dsn.partition("://")
    with connect(f"{scheme.split('+')[0]}{separator}{rest}", autocommit=True) as connection:
        if connection.execute(_THERE).fetchone() != (True,):
            return []
        try:
            found = connection.execute(_OPEN, {"tag": QUEUE_TAG, "newest": NEWEST})
            return [OpenRun(*row) for row in found]
        except psycopg.errors.UndefinedTable:
            return []
