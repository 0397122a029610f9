"""What keeps the history of the platform: a look at its state, four times an hour."""

from pathlib import Path

import dagster as dg
from pydantic import SecretStr

from replica_platform.app.observation import record_state
from replica_platform.app.settings import Settings
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
    settings = Settings(data_dir=Path(platform.data_dir), target_dsn=SecretStr(target.dsn))
    recorded = record_state(settings)
    return dg.SkipReason(f"{recorded:,} values recorded; `replica deck` shows them.")
