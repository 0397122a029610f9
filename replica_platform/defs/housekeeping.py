"""The daily removal of old runs, events and ticks from Dagster's database."""

import dagster as dg

from replica_platform.app.housekeeping import remove_old
from replica_platform.resources.platform import PlatformConfig


@dg.op
def remove_old_runs(context: dg.OpExecutionContext, platform: PlatformConfig) -> None:
    """Remove what is older than `REPLICA_KEEP_RUNS_DAYS`."""
    removed = remove_old(context.instance, platform.keep_runs_days)
    context.log.info(removed.sentence)


@dg.job(
    description="Removes runs, events and ticks older than REPLICA_KEEP_RUNS_DAYS days from "
    "Dagster's database; the newest run of each asset, partition and check stays.",
)
def housekeeping() -> None:
    """Remove old runs, events and ticks."""
    remove_old_runs()


housekeeping_daily = dg.ScheduleDefinition(
    name="housekeeping",
    job=housekeeping,
    cron_schedule="30 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Old runs, events and ticks, at 04:30.",
)
