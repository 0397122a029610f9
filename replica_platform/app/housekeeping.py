"""Removal of old runs, events and ticks from Dagster's database; Dagster itself removes ticks only.

What a page shows of an asset stays: the runs of its newest materialisation, of that of each of its
partitions, and of the newest evaluation of each check.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import sqlalchemy as sa
from dagster._core.instance import RUNLESS_RUN_ID
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Evaluations
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

from replica_platform.core.reports import DoneReport

PAGE = 200
# A first removal from a large database goes on the next day.
BUDGET_S = 600.0
ENDED_TICKS = [status for status in TickStatus if status is not TickStatus.STARTED]


@dataclass(frozen=True)
class Removed(DoneReport):
    """What was removed from Dagster's database.

    Attributes:
        runs: Runs, each with its events and logs.
        kept_runs: Runs as old as these that show the present state of an asset or check.
        other_events: Events that belong to no run.
        complete: Whether everything old was reached in the time that was given.
        seconds: How long it took.
    """

    runs: int
    kept_runs: int
    other_events: int
    complete: bool
    seconds: float

    @property
    def sentence(self) -> str:
        """What was removed, and what remains to do."""
        done = (
            f"{self.runs:,} runs and {self.other_events:,} other events removed; "
            f"{self.kept_runs:,} old runs stay, since they show the present state of an asset or "
            "check."
        )
        return done if self.complete else f"{done} There are more; the next run goes on."


def remove_old(
    instance: dg.DagsterInstance, keep_days: float, *, budget_s: float = BUDGET_S
) -> Removed:
    """Remove runs that ended, events and ticks that are older than `keep_days` days.

    Args:
        instance: The Dagster instance, on Postgres or SQLite.
        keep_days: The age in days above which they are removed.
        budget_s: The time in seconds after which it stops, between two pages of runs.
    """
    began = time.monotonic()
    before = datetime.now(UTC) - timedelta(days=keep_days)
    needed = _runs_of_the_present(instance)
    old = list(_old_runs(instance, before))
    unneeded = [run_id for run_id in old if run_id not in needed]
    removed = 0
    for page in _pages(unneeded):
        if time.monotonic() - began > budget_s:
            break
        _remove_runs(instance, page)
        removed += len(page)
    others = _remove_runless_events(instance, before)
    _remove_ticks(instance, before)
    return Removed(
        runs=removed,
        kept_runs=len(old) - len(unneeded),
        other_events=others,
        complete=removed == len(unneeded),
        seconds=time.monotonic() - began,
    )


def _runs_of_the_present(instance: dg.DagsterInstance) -> set[str]:
    """Return the runs of the newest materialisation and evaluation of everything."""
    materialised = (
        sa.select(sa.func.max(Events.c.id))
        .where(
            Events.c.dagster_event_type.in_(
                [
                    dg.DagsterEventType.ASSET_MATERIALIZATION.value,
                    dg.DagsterEventType.ASSET_OBSERVATION.value,
                ]
            )
        )
        .group_by(Events.c.asset_key, Events.c.partition, Events.c.dagster_event_type)
    )
    evaluated = sa.select(sa.func.max(Evaluations.c.id)).group_by(
        Evaluations.c.asset_key, Evaluations.c.check_name, Evaluations.c.partition
    )
    with sql_storage(instance).index_connection() as connection:
        events = connection.execute(sa.select(Events.c.run_id).where(Events.c.id.in_(materialised)))
        checks = connection.execute(
            sa.select(Evaluations.c.run_id).where(Evaluations.c.id.in_(evaluated))
        )
        return {run_id for (run_id,) in (*events, *checks)}


def _old_runs(instance: dg.DagsterInstance, before: datetime) -> Iterator[str]:
    """Yield the runs that ended and were created before a moment, the oldest first."""
    filters = dg.RunsFilter(statuses=list(FINISHED_STATUSES), created_before=before)
    cursor = None
    while True:
        page = instance.get_runs(filters, cursor=cursor, limit=PAGE, ascending=True)
        yield from (run.run_id for run in page)
        if len(page) < PAGE:
            return
        cursor = page[-1].run_id


def _remove_runs(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> None:
    storage = sql_storage(instance)
    with storage.index_connection() as connection:
        # `delete_run` leaves them there; first, so that an interrupted removal finds them again.
        connection.execute(sa.delete(Evaluations).where(Evaluations.c.run_id.in_(run_ids)))
    for run_id in run_ids:
        instance.delete_run(run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        if isinstance(storage, SqliteEventLogStorage):
            # SQLite has a file for each run; Dagster empties it and leaves it there.
            for ending in ("", "-wal", "-shm"):
                Path(f"{storage.path_for_shard(run_id)}{ending}").unlink(missing_ok=True)


def _remove_runless_events(instance: dg.DagsterInstance, before: datetime) -> int:
    """Remove old events that belong to no run, but the newest of each asset and kind."""
    newest = (
        sa.select(sa.func.max(Events.c.id))
        .where(Events.c.asset_key.is_not(None))
        .group_by(Events.c.asset_key, Events.c.partition, Events.c.dagster_event_type)
    )
    old = sa.delete(Events).where(
        Events.c.run_id == RUNLESS_RUN_ID,
        Events.c.timestamp < before.replace(tzinfo=None),
        Events.c.id.not_in(newest),
    )
    with sql_storage(instance).index_connection() as connection:
        return int(connection.execute(old).rowcount)


def _remove_ticks(instance: dg.DagsterInstance, before: datetime) -> None:
    """Remove old ticks, also those of schedules and sensors that no longer exist."""
    for state in instance.all_instigator_state():
        instance.purge_ticks(
            state.instigator_origin_id, state.selector_id, before.timestamp(), ENDED_TICKS
        )


def sql_storage(instance: dg.DagsterInstance) -> SqlEventLogStorage:
    """Return the database of an instance's events.

    Raises:
        TypeError: They are in none.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise TypeError(f"{type(storage).__name__} is no SQL database, so it cannot be asked.")
    return storage


def _pages(run_ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (run_ids[at : at + PAGE] for at in range(0, len(run_ids), PAGE))
