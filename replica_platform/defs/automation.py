"""When things run by themselves: schedules, sensors, and what watches a failure.

What a component lists runs by the component's own: see `xmin_tables`,
`worker_outboxes` and `sqlite_backups`.
"""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from replica_platform.defs.replica.assets import market_replica
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
    """Skips holidays, which cron does not know."""
    day = context.scheduled_execution_time.date()
    if not is_trading_day(day):
        return dg.SkipReason(f"{day} is not a trading day.")
    return dg.RunRequest(run_key=f"nasdaq-{day}")


@dg.sensor(
    target=dg.AssetSelection.assets(market_replica),
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks for a publication when the replica is missing, corrupt or behind its master.",
)
def replica_repair(
    context: dg.SensorEvaluationContext, master: MasterDuckDB, store: ReplicaStore
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Looks by lineage and manifest; bytes are read by the asset's blocking check."""
    if not master.path.exists():
        yield dg.SkipReason("There is no master yet.")
        return
    found = status(store.path, master.path)
    if found.ok:
        yield dg.SkipReason(found.sentence)
        return
    context.log.warning(found.sentence)
    # At most one a quarter of an hour, so that a fault which stays does not fill the queue.
    slot = int(context.last_tick_completion_time or 0) // int(timedelta(minutes=15).total_seconds())
    yield dg.RunRequest(run_key=f"repair-{found.generation}-{slot}")


@dg.run_failure_sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def failed_runs(context: dg.RunFailureSensorContext) -> None:
    """Says in the daemon's log which run failed, and why, in one line."""
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
