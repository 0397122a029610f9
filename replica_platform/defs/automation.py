"""Schedules and sensors of the market and the replica, and the log line of a failed run.

The components bring their own: see `xmin_tables`, `worker_outboxes` and `sqlite_backups`.
"""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from replica_platform.defs.replica.assets import market_replica
from replica_platform.defs.replica.checks import kept_bytes_are_intact
from replica_platform.market.sessions import TIME_ZONE, is_trading_day
from replica_platform.replica import status
from replica_platform.resources.master import MasterDuckDB
from replica_platform.resources.store import ReplicaStore

RUNNING = dg.DefaultScheduleStatus.RUNNING


@dg.schedule(
    target=dg.AssetSelection.groups("market"),
    cron_schedule="30 16 * * 1-5",
    execution_timezone=TIME_ZONE,
    default_status=RUNNING,
    description="The market's tables, half an hour after the close of each trading day.",
)
def nasdaq_daily_pipeline(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Request a run on a trading day; a cron schedule knows no holidays."""
    day = context.scheduled_execution_time.date()
    if not is_trading_day(day):
        return dg.SkipReason(f"{day} is not a trading day.")
    return dg.RunRequest(run_key=f"nasdaq-{day}")


replica_scrub = dg.ScheduleDefinition(
    name="replica_scrub",
    target=dg.AssetSelection.checks(kept_bytes_are_intact),
    cron_schedule="45 * * * *",
    default_status=RUNNING,
    description="A share of the kept generations each hour, all of them within a week.",
)


@dg.sensor(
    target=dg.AssetSelection.assets(market_replica),
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Publishes when the replica is missing, damaged or behind its master.",
)
def replica_repair(
    context: dg.SensorEvaluationContext, master: MasterDuckDB, store: ReplicaStore
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Compare lineage and manifest; the asset's blocking check reads the bytes."""
    if not master.path.exists():
        yield dg.SkipReason("There is no master yet.")
        return
    found = status(store.path, master.path)
    if found.ok:
        yield dg.SkipReason(found.sentence)
        return
    context.log.warning(found.sentence)
    # At most one run in 15 minutes, so that a lasting fault does not fill the queue.
    slot = int(context.last_tick_completion_time or 0) // int(timedelta(minutes=15).total_seconds())
    yield dg.RunRequest(run_key=f"repair-{found.generation}-{slot}")


@dg.run_failure_sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def failed_runs(context: dg.RunFailureSensorContext) -> None:
    """Log in one line of the daemon's log which run failed, at which step, and why."""
    steps = [event.step_key for event in context.get_step_failure_events()]
    context.log.error(
        "Run %s failed at %s: %s",
        context.dagster_run.run_id[:8],
        ", ".join(str(step) for step in steps) or "its start",
        context.failure_event.message,
    )


declarative_automation = dg.AutomationConditionSensorDefinition(
    "declarative_automation",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Publishes when a table of the master changed and its blocking checks passed.",
)
