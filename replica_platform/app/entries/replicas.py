"""The entries of published replicas: of a whole master DuckDB file, and of parts of one."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from replica_platform.app.entries.base import (
    Cron,
    Entry,
    FileName,
    Kept,
    Name,
    NotNegative,
    Part,
    Positive,
    Timezone,
    checked,
    host_pool,
    wrong_cron,
    wrong_name,
)
from replica_platform.core.errors import PlatformError
from replica_platform.replica import Purpose
from replica_platform.replica.store.layout import LINK

MASTER = "master/master.duckdb"
# What the purposes of a replica take over from it.
SHARED = (
    *("master", "as_of", "changes", "repair_interval_s", "fresh_within_s"),
    *("scrub_cron_schedule", "timezone", "group", "owners", "tags", "host"),
)


def _hosts_once(regions: Sequence["RegionEntry"]) -> str:
    hosts = [region.host for region in regions]
    twice = sorted({host for host in hosts if hosts.count(host) > 1})
    return f"{twice[0]} is listed twice" if twice else ""


def _sound(purposes: Mapping[str, Mapping[str, Any]]) -> str:
    for name, given in purposes.items():
        try:
            Purpose.from_dict(name, given)
        except PlatformError as error:
            return str(error)
    return ""


Purposes = Annotated[Mapping[str, Mapping[str, Any]], checked(_sound)]


class _Published(Entry):
    """What replicas and purposes have in common.

    Attributes:
        master: The DuckDB file that is published, absolute or below the data folder.
        after: The assets that write the master; it is published when they changed. When absent,
            of a purpose the tables that it lists; of a replica none.
        as_of: A query of the master for the time of its newest data, shown with each generation.
        changes: Whether each publication shows which rows it added, removed and changed, table by
            table; only what differs is read, and of that at most ten million values.
        blocks: A folder or a URL such as `s3://bucket/prefix` for a second copy of each
            generation; a folder of `REPLICA_BLOCK_STORE`, if that is set, when absent.
        link: The name of the link to the newest file in the store, for any DuckDB client; when
            absent the name of the replica or purpose with `.db`. Those of an entry that is
            called `purposes` keep the engine's name, which they had before there were others.
        repair_interval_s: How often the sensor looks whether the replica is missing, damaged or
            behind its master, in seconds.
        fresh_within_s: The age in seconds above which the last publication, or confirmation that
            there is nothing new, is a warning; None for never.
        scrub_cron_schedule: When a share of the kept generations is read again.
        timezone: The time zone of the schedule.
        group: The group of the assets.
        pool: The pool of what opens the master, shared with the assets that write it; on a
            host its name is followed by that of the host.
    """

    name: Name
    master: str = MASTER
    after: Sequence[str] | None = None
    as_of: str | None = None
    changes: bool = True
    blocks: str | None = None
    link: FileName | None = None
    repair_interval_s: Positive = 60
    fresh_within_s: Positive | None = None
    scrub_cron_schedule: Cron = "45 * * * *"
    timezone: Timezone = "UTC"
    group: Name = "replica"
    pool: Name | None = None

    @property
    def pool_name(self) -> str:
        """The pool of what opens the master, on its host."""
        return host_pool(self._own_pool, self.host)

    @property
    def _own_pool(self) -> str:
        return self.pool or f"{self.name}_master"


class RegionEntry(Part):
    """A copy of a replica on another host, pulled from its block store.

    Attributes:
        host: The name of the host, whose worker pulls.
        store: The folder of the generations on that host, absolute or below its data folder;
            `regions/HOST/NAME` when absent.
        cron_schedule: When the host pulls what it has missed; a publication is pulled at once.
        fresh_within_s: The age in seconds above which the last pull, or confirmation that there
            is nothing new, is a warning.
    """

    host: str
    store: str | None = None
    cron_schedule: str = "*/15 * * * *"
    fresh_within_s: int = 3600

    # Dagster resolves the parts of an entry by their plain types.
    @model_validator(mode="after")
    def _sound(self) -> "RegionEntry":
        for wrong in (
            wrong_name(self.host),
            wrong_cron(self.cron_schedule),
            "" if self.fresh_within_s > 0 else "fresh_within_s should be greater than 0",
        ):
            if wrong:
                raise ValueError(wrong)
        return self


class DuckDBReplicaEntry(_Published):
    """A master DuckDB file, published as generations that any number of readers query.

    Attributes:
        name: The name of the asset, and of its checks, schedule, sensor and store.
        store: The folder of the published generations, absolute or below the data folder;
            `replica/NAME` when absent.
        required: Tables that must be there, and are read to the end before readers see them.
        rules: By a sentence each, a query for the rows that break the rule: no row means that it
            holds. A candidate that breaks a rule is not published. `published.NAME` is the table
            NAME that readers have, empty where they have none.
        keep: How many generations are kept; `REPLICA_KEEP_GENERATIONS` when absent.
        min_age_s: How long each generation is kept at least, in seconds.
        purposes: Parts of the master for one use each, as in a PurposeReplicas entry.
        regions: Copies of the generations on other hosts, pulled from the block store and read
            there, such as `[{host: eu}]`.
    """

    store: str | None = None
    required: Sequence[str] = ()
    rules: Mapping[str, str] = {}
    keep: Kept | None = None
    min_age_s: NotNegative | None = None
    purposes: Purposes = Field(default_factory=dict)
    regions: Annotated[Sequence[RegionEntry], checked(_hosts_once)] = ()

    @property
    def store_folder(self) -> str:
        """The folder of the generations, absolute or below the data folder."""
        return self.store or f"replica/{self.name}"

    @property
    def link_name(self) -> str:
        """The name of the link to the newest generation."""
        return self.link or f"{self.name}.db"

    def region_folder(self, region: RegionEntry) -> str:
        """Return the folder of the generations in a region, absolute or below the data folder."""
        return region.store or f"regions/{region.host}/{self.name}"

    def parts(self) -> "PurposeReplicasEntry":
        """Return the purposes as the entry that they stand for."""
        return PurposeReplicasEntry(
            purposes=self.purposes,
            name=self.name,
            store=f"{self.store_folder}/purposes",
            blocks=f"{self.blocks.rstrip('/')}_purposes" if self.blocks else None,
            **{shared: getattr(self, shared) for shared in SHARED},
            after=self.after or (),
            pool=self._own_pool,
        )


class PurposeReplicasEntry(_Published):
    """Parts of a master, each for one use: some tables, columns and rows, masked.

    Attributes:
        purposes: For each name its `tables` (each with columns, left_out, where, mask) and the
            options keep, min_age_s, max_age_s and salt_env.
        name: The name of the entry: the first part of the assets' keys, and part of the name of
            the repair sensor.
        store: The folder of the purposes' stores, absolute or below the data folder;
            `replica/NAME` when absent.
    """

    purposes: Purposes
    name: Name = "purposes"
    store: str | None = None

    def made(self) -> list[Purpose]:
        """Return the purposes."""
        return [Purpose.from_dict(name, given) for name, given in self.purposes.items()]

    def store_folder(self, purpose: str) -> str:
        """Return the folder of a purpose's generations, absolute or below the data folder."""
        return f"{self.store or f'replica/{self.name}'}/{purpose}"

    def link_name(self, purpose: str) -> str:
        """Return the name of the link to a purpose's newest generation."""
        # Those of the first entry have the name from before there could be others.
        return self.link or (LINK if self.name == "purposes" else f"{purpose}.db")

    def blocks_of(self, purpose: str) -> str | None:
        """Return the block store of a purpose; None for a folder of the one of the settings."""
        return f"{self.blocks.rstrip('/')}/{purpose}" if self.blocks else None

    def blocks_folder(self, purpose: str) -> str:
        """Return the folder of a purpose in the block store of the settings."""
        # Those of the first entry are where they were before there could be others.
        return purpose if self.name == "purposes" else f"{self.name}_purposes/{purpose}"
