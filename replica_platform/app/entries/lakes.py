"""The entry of a lake as a master: where it is, how it is kept, and how it is published."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import model_validator

from replica_platform.app.entries.base import Cron, Name, Positive, Variable, checked
from replica_platform.app.entries.replicas import DuckDBReplicaEntry

HOUR_S = 3600


def _place(text: str) -> str:
    if "://" in text and not text.startswith("s3://"):
        # Not repeated: it may hold a password.
        return "this is neither a folder nor s3://bucket/prefix"
    return "" if text.removeprefix("s3://").strip("/") else "name a folder or s3://bucket/prefix"


def _hours(seconds: int) -> str:
    # A younger file may be one of a write that is not committed yet.
    return "" if seconds >= HOUR_S else f"{seconds} should be at least {HOUR_S}"


class LakeMasterEntry(DuckDBReplicaEntry):
    """A lake that many processes write at once, published like a master file.

    Its newest snapshot is exported to the file `master`, which is published as generations. The
    attributes of a DuckDBReplica apply to that publication; `after` names the assets that write
    the lake.

    Attributes:
        catalog: The environment variable with the DSN of the catalog's database;
            `REPLICA_TARGET_DSN` when absent.
        catalog_schema: The schema of that database that is the catalog; `lake_NAME` when absent.
        data: The folder of the lake's files, absolute or below the data folder, or
            s3://bucket/prefix, for this lake alone; `lake/NAME` when absent.
        master: The DuckDB file that snapshots are exported to, absolute or below the data folder;
            `lake/NAME.duckdb` when absent.
        snapshot_interval_s: How often the sensor looks for a newer snapshot, in seconds.
        maintenance_cron_schedule: When small files are merged, and snapshots and files removed
            that nothing needs.
        keep_snapshots_s: The age in seconds to which snapshots are kept.
        orphan_age_s: The age in seconds from which files without a snapshot are removed; more than
            the longest write takes.
    """

    catalog: Variable | None = None
    catalog_schema: Name | None = None
    data: Annotated[str, checked(_place)] | None = None
    master: str = ""
    snapshot_interval_s: Positive = 60
    maintenance_cron_schedule: Cron = "20 2 * * *"
    keep_snapshots_s: Annotated[int, checked(_hours)] = 7 * 24 * HOUR_S
    orphan_age_s: Annotated[int, checked(_hours)] = 24 * HOUR_S

    @model_validator(mode="after")
    def _named(self) -> "LakeMasterEntry":
        # Not `lake/NAME`: that is the folder of the data.
        self.master = self.master or f"lake/{self.name}.duckdb"
        return self

    @property
    def schema_name(self) -> str:
        """The schema of the catalog."""
        return self.catalog_schema or f"lake_{self.name}"

    @property
    def data_place(self) -> str:
        """The folder of the data, absolute or below the data folder, or the URL of a bucket."""
        return self.data or f"lake/{self.name}"

    @property
    def master_asset(self) -> str:
        """The name of the asset that is the exported snapshot."""
        return f"{self.name}_master"

    def replica(self, as_of: str, after: Sequence[str]) -> DuckDBReplicaEntry:
        """Return the publication as the entry that it stands for.

        Args:
            as_of: The query for the time of the newest data, where the entry has none.
            after: The assets that it is published after.
        """
        shared = {name: getattr(self, name) for name in DuckDBReplicaEntry.model_fields}
        return DuckDBReplicaEntry(
            **{**shared, "as_of": self.as_of or as_of, "after": after, "pool": self.pool_name}
        )
