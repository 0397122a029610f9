"""A lake that many processes write, exported and published for any number of readers."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from dagster.components import Component, ComponentLoadContext, Resolvable

from replica_platform.app.entries import LakeMasterEntry
from replica_platform.app.lakes import lake_of
from replica_platform.components.duckdb_replica import DuckDBReplica
from replica_platform.components.publishing import Publishing, automation, check_automation
from replica_platform.components.scaffolding import ExampleScaffolder, with_attributes
from replica_platform.lake import AS_OF, Export, Lake, export, maintain, pending, status
from replica_platform.metadata import change
from replica_platform.policies import (
    TRANSIENT,
    fresh_within,
    named_job,
    repair_key,
    translate_errors,
)
from replica_platform.replica import Master, MasterBusy
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase, database


@with_attributes
@dg.scaffold_with(ExampleScaffolder)
class LakeMaster(Component, LakeMasterEntry, Resolvable):
    """A lake that many processes write at once, published as generations. Experimental.

    Its tables are Parquet files in a folder or a bucket, its catalog is in a Postgres (DuckLake). A
    sensor exports each newer snapshot to a DuckDB file and publishes that, as a DuckDBReplica does.
    It needs the extra `lake`. Writers use `replica_platform.lake.LakeWriter`.

    Example:
        name: shop
        catalog_schema: lake_shop # in the target's database; `catalog` names another one's DSN
        data: lake/shop # below the data folder, absolute, or s3://bucket/prefix
        after: [] # the assets that write the lake, if there are any
        rules: # each a query for the rows that break it
          "no rule is broken": select 1 where false
    """

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """Return the export with its check, sensor and maintenance, and the publication."""
        own = dg.Definitions(
            assets=[self._exported()],
            asset_checks=[self._is_intact()],
            schedules=[self._maintenance()],
            sensors=[self._sensor()],
        )
        published = DuckDBReplica(**dict(self.replica(AS_OF, [self.master_asset])))
        return dg.Definitions.merge(own, published.build_defs(context))

    def _lake(self, platform: PlatformConfig, target: PostgresDatabase) -> Lake:
        return lake_of(self, database(self.catalog, target).dsn, platform.path)

    def _exported(self) -> dg.AssetsDefinition:
        @dg.asset(
            name=self.master_asset,
            deps=list(self.after or ()),
            group_name=self.group,
            kinds={"duckdb"},
            owners=list(self.owners),
            tags=dict(self.tags),
            pool=self.pool_name,
            retry_policy=TRANSIENT,
            freshness_policy=fresh_within(self.fresh_within_s) if self.fresh_within_s else None,
            automation_condition=automation(self.after or ()),
            description=f"The newest snapshot of the lake {self.schema_name}, as {self.master}.",
        )
        def exported(
            platform: PlatformConfig, target: dg.ResourceParam[PostgresDatabase], config: Publishing
        ) -> dg.MaterializeResult:
            with translate_errors():
                lake = self._lake(platform, target)
                done = _export(lake, platform.path(self.master), config.new_lineage)
            return dg.MaterializeResult(
                metadata={
                    **change(bool(done.copied or done.dropped), done.sentence),
                    "snapshot": done.snapshot,
                    "tables": done.tables,
                    "tables_copied": len(done.copied),
                },
                data_version=dg.DataVersion(str(done.snapshot)),
            )

        return exported

    def _is_intact(self) -> dg.AssetChecksDefinition:
        key = dg.AssetKey(self.master_asset)

        @dg.asset_check(
            asset=key,
            name="lake_is_intact",
            automation_condition=check_automation(self.after or (), key),
            description="Every file that a kept snapshot of the lake needs is there.",
        )
        def lake_is_intact(
            platform: PlatformConfig, target: dg.ResourceParam[PostgresDatabase]
        ) -> dg.AssetCheckResult:
            with translate_errors():
                found = status(self._lake(platform, target), orphan_age_s=self.orphan_age_s)
            return dg.AssetCheckResult(
                passed=found.ok,
                description=found.sentence,
                metadata={
                    "snapshots": found.snapshots,
                    "files": found.files,
                    "file_bytes": found.file_bytes,
                    "orphans": len(found.orphans),
                    "missing": len(found.missing),
                },
            )

        return lake_is_intact

    def _sensor(self) -> dg.SensorDefinition:
        name = f"{self.name}_snapshots"
        keys = [dg.AssetKey(self.master_asset), dg.AssetKey(self.name)]
        description = "Exports and publishes a snapshot of the lake that is newer."

        @dg.sensor(
            name=name,
            target=named_job(name, dg.AssetSelection.assets(*keys), description),
            minimum_interval_seconds=self.snapshot_interval_s,
            default_status=dg.DefaultSensorStatus.RUNNING,
            description=description,
        )
        def snapshots(
            context: dg.SensorEvaluationContext,
            platform: PlatformConfig,
            target: dg.ResourceParam[PostgresDatabase],
        ) -> Iterator[dg.RunRequest | dg.SkipReason]:
            with translate_errors():
                lake = self._lake(platform, target)
                if not status(lake, files=False).exists:
                    yield dg.SkipReason(f"There is no lake {lake.schema} yet.")
                    return
                try:
                    newer = _pending(lake, platform.path(self.master))
                except MasterBusy:
                    yield dg.SkipReason("An export or a publication is under way.")
                    return
            if newer is None:
                yield dg.SkipReason("The newest snapshot is exported.")
                return
            yield dg.RunRequest(
                run_key=f"{name}-{repair_key(context, newer)}", asset_selection=keys
            )

        return snapshots

    def _maintenance(self) -> dg.ScheduleDefinition:
        name = f"{self.name}_maintenance"
        description = "Merges small files, and removes snapshots and files that nothing needs."

        @dg.op(name=f"{self.name}_maintain", description=description)
        def maintained(
            context: dg.OpExecutionContext,
            platform: PlatformConfig,
            target: dg.ResourceParam[PostgresDatabase],
        ) -> None:
            with translate_errors():
                lake = self._lake(platform, target)
                if not status(lake, files=False).exists:
                    context.log.info(f"There is no lake {lake.schema} yet.")
                    return
                done = maintain(lake, keep_s=self.keep_snapshots_s, orphan_age_s=self.orphan_age_s)
            (context.log.info if done.ok else context.log.warning)(done.sentence)

        @dg.job(name=name, description=description)
        def maintenance() -> None:
            maintained()

        return dg.ScheduleDefinition(
            name=name,
            job=maintenance,
            cron_schedule=self.maintenance_cron_schedule,
            execution_timezone=self.timezone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=description,
        )


def _pending(lake: Lake, file: Path) -> int | None:
    """Return the number of the newest snapshot if the exported file does not have it."""
    if not file.exists():
        return pending(lake, None)
    with Master(file, patience_s=0).read() as connection:
        return pending(lake, connection)


def _export(lake: Lake, file: Path, new_lineage: bool) -> Export:
    """Bring the file to the newest snapshot; one that has it already is not written."""
    master = Master(file)
    if file.exists():
        with master.read() as connection:
            if pending(lake, connection) is None:
                return export(lake, connection)
    with master.write() as connection:
        return export(lake, connection, new_lineage=new_lineage)
