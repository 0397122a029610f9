"""Copies of a replica on other hosts: pulled from its block store, checked, and read there."""

from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg

from replica_platform.app.entries import DuckDBReplicaEntry, RegionEntry
from replica_platform.app.entries.base import host_pool, host_tags
from replica_platform.components.publishing import Replica
from replica_platform.metadata import change
from replica_platform.policies import (
    AFTER_PARENTS,
    TRANSIENT,
    after,
    fresh_within,
    named_job,
    translate_errors,
    waits_on_host,
)
from replica_platform.replica import BlockStore, NothingPublished, status, verify
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.store import ReplicaStore, store_metadata, store_of


def region_definitions(entry: DuckDBReplicaEntry, replica: Replica) -> dg.Definitions:
    """Return the assets, checks and schedules of the regions of a replica; none without any."""
    regions = [_Region(entry, replica, region) for region in entry.regions]
    return dg.Definitions(
        assets=[region.asset() for region in regions],
        asset_checks=[region.checks() for region in regions],
        schedules=[region.schedule() for region in regions],
    )


@dataclass(frozen=True)
class _Region:
    """The copy of one replica on one host.

    Attributes:
        entry: The entry of the replica.
        source: The replica.
        given: What the entry says of the region.
    """

    entry: DuckDBReplicaEntry
    source: Replica
    given: RegionEntry

    @property
    def host(self) -> str:
        return self.given.host

    @property
    def key(self) -> dg.AssetKey:
        return dg.AssetKey(["regions", self.host, self.entry.name])

    @property
    def _pool(self) -> str:
        return host_pool(f"{self.entry.name}_pull", self.host)

    @property
    def _metadata(self) -> dict[str, str]:
        folder = self.entry.region_folder(self.given)
        return store_metadata(folder, self.entry.blocks, self.entry.name)

    def _store(self, platform: PlatformConfig) -> tuple[ReplicaStore, BlockStore]:
        store = store_of(platform, self._metadata)
        if store.block_store is None:
            raise NothingPublished(
                f"{self.entry.name} has no block store that {self.host} could pull from; set "
                "`blocks` of its entry, or REPLICA_BLOCK_STORE on every host."
            )
        return store, store.block_store

    def asset(self) -> dg.AssetsDefinition:
        """Return the asset that pulls the newest generation."""

        @dg.asset(
            key=self.key,
            deps=[self.source.key],
            group_name="regions",
            kinds={"duckdb"},
            owners=list(self.entry.owners),
            tags={**self.entry.tags, **host_tags(self.host)},
            metadata=self._metadata,
            pool=self._pool,
            retry_policy=TRANSIENT,
            freshness_policy=fresh_within(self.given.fresh_within_s),
            automation_condition=AFTER_PARENTS,
            description=f"The generations of {self.entry.name} on {self.host}: pulled from its "
            "block store after each publication, and read there.",
        )
        def pulled(platform: PlatformConfig) -> dg.MaterializeResult:
            with translate_errors():
                store, blocks = self._store(platform)
                publication = blocks.pull(
                    store.path,
                    keep=self.entry.keep or platform.keep_generations,
                    min_age_s=60.0 if self.entry.min_age_s is None else self.entry.min_age_s,
                )
            new = publication.how != "unchanged"
            return dg.MaterializeResult(
                metadata={
                    **change(new, f"generation {publication.generation} pulled"),
                    "dagster/row_count": sum(
                        table.rows for table in publication.manifest.tables.values()
                    ),
                    "dagster/uri": str(publication.file),
                    "generation": publication.generation,
                    "bytes": publication.bytes,
                    "blocks_written": publication.blocks_written,
                    "pull_seconds": publication.seconds,
                    "digest": publication.digest,
                },
                data_version=dg.DataVersion(str(publication.generation)),
            )

        return pulled

    def checks(self) -> dg.AssetChecksDefinition:
        """Return the checks of the bytes that were pulled, and of what is newest."""
        specs = [
            dg.AssetCheckSpec(
                "pulled_bytes_are_intact",
                asset=self.key,
                blocking=True,
                automation_condition=after(self.key),
                description="Every byte of the current generation matches its manifest, and every "
                "table can be read.",
            ),
            dg.AssetCheckSpec(
                "region_is_in_sync",
                asset=self.key,
                automation_condition=after(self.key),
                description="Readers of the region see the newest generation of the block store.",
            ),
        ]

        @dg.multi_asset_check(
            name="_".join([*self.key.path, "checks"]),
            specs=specs,
            can_subset=True,
            pool=self._pool,
        )
        def checks(
            context: dg.AssetCheckExecutionContext, platform: PlatformConfig
        ) -> Iterator[dg.AssetCheckResult]:
            asked = {check.name for check in context.selected_asset_check_keys}
            with translate_errors():
                store, blocks = self._store(platform)
                if "pulled_bytes_are_intact" in asked:
                    found = verify(store.path)
                    yield dg.AssetCheckResult(
                        asset_key=self.key,
                        check_name="pulled_bytes_are_intact",
                        passed=found.ok,
                        description=found.sentence,
                    )
                if "region_is_in_sync" in asked:
                    yield self._in_sync(status(store.path).generation, blocks)

        return checks

    def _in_sync(self, here: int | None, blocks: BlockStore) -> dg.AssetCheckResult:
        newest = blocks.current()
        there = newest.generation if newest else None
        return dg.AssetCheckResult(
            asset_key=self.key,
            check_name="region_is_in_sync",
            passed=here == there,
            severity=dg.AssetCheckSeverity.WARN,
            description=(
                f"Generation {here} is the newest one."
                if here == there
                else f"Readers see generation {here}, the block store has {there}; materialise "
                f"{self.key.to_user_string()}."
            ),
            metadata={"generation": here, "newest_generation": there},
        )

    def schedule(self) -> dg.ScheduleDefinition:
        """Return the schedule that pulls what a host has missed."""
        name = "_".join([*self.key.path, "pull"])
        description = f"What {self.host} has missed of {self.entry.name}."

        @dg.schedule(
            name=name,
            target=named_job(name, dg.AssetSelection.assets(self.key), description),
            cron_schedule=self.given.cron_schedule,
            execution_timezone=self.entry.timezone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=description,
        )
        def pull(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
            return waits_on_host(context, name, self.host) or dg.RunRequest()

        return pull
