"""What keeps the history of the platform: a look at its state, four times an hour."""

from pathlib import Path

import dagster as dg

from replica_platform.app.configured import configured
from replica_platform.app.entries.base import host_tags
from replica_platform.app.observation import record_state
from replica_platform.app.state import PlatformLocations
from replica_platform.policies import waits_on_host
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase

EVERY_S = 900


# A sensor that starts no run: a run would cost a process for a second's look.
@dg.sensor(
    minimum_interval_seconds=EVERY_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Records lag, proofs, readers, backlogs and backups, for `replica deck`.",
)
def history(platform: PlatformConfig, target: dg.ResourceParam[PostgresDatabase]) -> dg.SkipReason:
    """Record the state of all that is configured."""
    return dg.SkipReason(f"{_record(platform, target)} values recorded; `replica deck` shows them.")


def history_on(host: str) -> dg.ScheduleDefinition:
    """Return the schedule that records the state of a host, by a run there: its files are there.

    Args:
        host: The name of the host.
    """
    name = f"history_{host}"

    @dg.op(name=f"record_{host}")
    def record(
        context: dg.OpExecutionContext,
        platform: PlatformConfig,
        target: dg.ResourceParam[PostgresDatabase],
    ) -> None:
        context.log.info(f"{_record(platform, target, host)} values of {host} recorded.")

    @dg.job(name=name, tags=host_tags(host), description=f"Records the state of {host}.")
    def look() -> None:
        record()

    @dg.schedule(
        name=name,
        job=look,
        cron_schedule="*/15 * * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Records readers, backlogs and backups of {host}, for `replica deck`.",
    )
    def look_again(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return waits_on_host(context, name, host) or dg.RunRequest()

    return look_again


def _record(platform: PlatformConfig, target: PostgresDatabase, host: str | None = None) -> str:
    found = configured(sample=platform.sample, host=host or platform.host)
    locations = PlatformLocations(target.dsn, Path(platform.data_dir), platform.backups)
    return f"{record_state(locations, found):,}"
