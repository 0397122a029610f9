"""The state of Dagster's daemon, ticks and runs, read from its database without Dagster.

Only the newest ticks and runs are read, so that a large database answers as quickly as a new one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from replica_platform.core.postgres import connect
from replica_platform.core.reports import ReportFields, format_age

NEWEST = 2000  # ticks and runs that are looked at
DAEMON_SILENT_S = 300

_TABLES = "select to_regclass('job_ticks') is not null and to_regclass('runs') is not null"
_HEARTBEAT = """
select extract(epoch from now()) - max((body::json->>'timestamp')::float8) from daemon_heartbeats
"""
_FAILED_TICKS = """
select tick_body from (
    select distinct on (selector_id) selector_id, status, tick_body
    from job_ticks
    where id > (select coalesce(max(id), 0) from job_ticks) - %(newest)s
        and status <> 'STARTED'
    order by selector_id, id desc
) latest where status = 'FAILURE'
"""
_FAILED_RUNS = """
select name, run_id from (
    select distinct on (t.value, p.value) t.value as name, r.run_id, r.status
    from runs r
    join run_tags t on t.run_id = r.run_id
        and t.key in ('dagster/schedule_name', 'dagster/sensor_name')
    left join run_tags p on p.run_id = r.run_id and p.key = 'dagster/partition'
    where r.id > (select coalesce(max(id), 0) from runs) - %(newest)s
        and r.status in ('SUCCESS', 'FAILURE')
    order by t.value, p.value, r.id desc
) latest where status = 'FAILURE'
order by name
"""


@dataclass(frozen=True)
class SchedulerStatus(ReportFields):
    """The state of what Dagster starts by itself.

    Attributes:
        heartbeat_age_s: The age of the daemon's last sign of life; None if it never ran.
        failed_ticks: Schedules and sensors whose last tick failed, each with its cause.
        failed_runs: Schedules and sensors whose last run failed, each with the run's id.
    """

    heartbeat_age_s: float | None = None
    failed_ticks: Sequence[str] = ()
    failed_runs: Sequence[str] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing failed, and the daemon runs or has never run."""
        return not self.failed_ticks and not self.failed_runs and not self._silent

    @property
    def started(self) -> bool:
        """Whether a daemon has ever run here."""
        return self.heartbeat_age_s is not None

    @property
    def hint(self) -> str:
        """What to do next when a schedule did not run."""
        if not self.started:
            return "no daemon has run here, so no schedule does; start it with `replica dev`"
        if self._silent:
            return "the daemon does not run, so no schedule does; start it with `replica dev`"
        return "the daemon runs, so see in the Dagster UI whether the schedule is switched on"

    @property
    def _silent(self) -> bool:
        return self.heartbeat_age_s is not None and self.heartbeat_age_s > DAEMON_SILENT_S

    @property
    def sentence(self) -> str:
        """What failed and what to do next, or that nothing did."""
        problems = [f"The last tick of {tick}" for tick in self.failed_ticks]
        problems += [
            f"The last run of {run} failed; its page in the Dagster UI (`replica dev`) says why."
            for run in self.failed_runs
        ]
        if self._silent:
            problems.append(
                f"The daemon ran last {format_age(self.heartbeat_age_s)} ago, so no schedule "
                "runs; start it with `replica dev`."
            )
        if problems:
            return " ".join(problems)
        if self.heartbeat_age_s is None:
            return "No daemon has run here yet; `replica dev` starts it, with every schedule."
        return "The daemon runs; the last tick and run of every schedule and sensor succeeded."


def scheduler_status(dsn: str) -> SchedulerStatus:
    """Return the state of the daemon, ticks and runs.

    Args:
        dsn: Dagster's database; a driver in its scheme (`postgresql+psycopg2://`) is ignored.

    Raises:
        CannotConnect: The database does not answer.
    """
    scheme, separator, rest = dsn.partition("://")
    with connect(f"{scheme.split('+')[0]}{separator}{rest}", autocommit=True) as connection:
        found = connection.execute(_TABLES).fetchone()
        if found != (True,):
            return SchedulerStatus()
        heartbeat = connection.execute(_HEARTBEAT).fetchone()
        return SchedulerStatus(
            heartbeat_age_s=_number(heartbeat),
            failed_ticks=_failed_ticks(connection),
            failed_runs=[
                f"{name} ({run_id[:8]})"
                for name, run_id in connection.execute(_FAILED_RUNS, {"newest": NEWEST})
            ],
        )


def _number(row: tuple[object, ...] | None) -> float | None:
    return None if row is None or row[0] is None else float(str(row[0]))


def _failed_ticks(connection: psycopg.Connection) -> list[str]:
    ticks = [json.loads(row[0]) for row in connection.execute(_FAILED_TICKS, {"newest": NEWEST})]
    return sorted(
        f"{tick.get('job_name') or tick.get('instigator_name')} failed: {_cause(tick)}"
        for tick in ticks
    )


def _cause(tick: dict[str, object]) -> str:
    """Return the innermost error of a tick in one line."""
    error = tick.get("error")
    while isinstance(error, dict) and error.get("cause"):
        error = error["cause"]
    message = str(error.get("message", "")) if isinstance(error, dict) else ""
    return " ".join(message.split()) or "no cause was recorded"
