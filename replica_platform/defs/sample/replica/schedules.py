"""When the kept generations are read again."""

import dagster as dg

from replica_platform.defs.sample.replica.checks import kept_bytes_are_intact

replica_scrub = dg.ScheduleDefinition(
    name="replica_scrub",
    target=dg.AssetSelection.checks(kept_bytes_are_intact),
    cron_schedule="45 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="A share of the kept generations each hour, all of them within a week.",
)
