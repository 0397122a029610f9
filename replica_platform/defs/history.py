"""What keeps the history of the platform: a look at its state, four times an hour."""

from pathlib import Path

import dagster as dg

from replica_platform.app.configured import configured
from replica_platform.app.observation import record_state
from replica_platform.app.state import PlatformLocations
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
    locations = PlatformLocations(target.dsn, Path(platform.data_dir), platform.backups)
    recorded = record_state(locations, configured(sample=platform.sample))
    return dg.SkipReason(f"{recorded:,} values recorded; `replica deck` shows them.")
