"""The list of a source's tables as an asset; its checks say what a reload would change."""

from collections.abc import Sequence

import dagster as dg

from replica_platform.app.entries import XminTablesEntry
from replica_platform.app.entries.base import host_tags
from replica_platform.app.shards import Shard, crossings
from replica_platform.policies import named_job, translate_errors
from replica_platform.resources.postgres import PostgresDatabase, database
from replica_platform.xmin import list_tables

RELOAD = "Reload the definitions (Deployment, Reload; or start `replica dev`)."


def catalog_definitions(entry: XminTablesEntry, shards: Sequence[Shard]) -> dg.Definitions:
    """Return the list of tables of an entry with patterns or shards, its checks, and a schedule.

    Args:
        entry: The entry.
        shards: The tables that the definitions were loaded with.
    """
    catalog = dg.AssetSpec(
        f"{entry.name}_catalog",
        group_name="source",
        kinds={"postgres"},
        tags=host_tags(entry.host),
        description=f"The list of tables that {entry.name} takes by pattern."
        if entry.has_patterns
        else f"The list of tables that {entry.name} takes its shards by.",
    )
    checks = []
    if entry.has_patterns:
        checks.append(_every_matching_table_is_synced(entry, catalog.key, shards))
    if entry.shards > 1 and entry.keep_joined:
        checks.append(_joined_tables_share_a_shard(entry, catalog.key, shards))
    if not checks:
        return dg.Definitions()
    return dg.Definitions(
        assets=[catalog],
        asset_checks=checks,
        schedules=[
            dg.ScheduleDefinition(
                name=f"{entry.name}_new_tables",
                target=named_job(
                    f"{entry.name}_new_tables",
                    dg.AssetSelection.checks(*checks),
                    f"Looks for new tables and foreign keys of {entry.name}.",
                ),
                cron_schedule=entry.catalog_cron_schedule,
                execution_timezone=entry.timezone,
                default_status=dg.DefaultScheduleStatus.RUNNING,
                description=f"Whether {entry.name} has new tables or foreign keys in the source.",
            )
        ],
    )


def _every_matching_table_is_synced(
    entry: XminTablesEntry, catalog: dg.AssetKey, shards: Sequence[Shard]
) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=catalog,
        name="every_matching_table_is_synced",
        description="The tables that match the patterns are those that the definitions were "
        "loaded with.",
    )
    def check(source: dg.ResourceParam[PostgresDatabase]) -> dg.AssetCheckResult:
        with translate_errors():
            present = list_tables(database(entry.source, source).dsn)
            matching = {table.table for table in entry.resolved(present)}
        known = {table.table for shard in shards for table in shard.tables}
        new, gone = sorted(matching - known), sorted(known - matching)
        return dg.AssetCheckResult(
            passed=not new and not gone,
            severity=dg.AssetCheckSeverity.WARN,
            description=_sentence(new, gone, len(known)),
            metadata={"new": new, "gone": gone, "tables": len(known)},
        )

    return check


def _joined_tables_share_a_shard(
    entry: XminTablesEntry, catalog: dg.AssetKey, shards: Sequence[Shard]
) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=catalog,
        name="joined_tables_share_a_shard",
        description="No foreign key of the source joins tables of two shards, which would be "
        "copied at two snapshots.",
    )
    def check(source: dg.ResourceParam[PostgresDatabase]) -> dg.AssetCheckResult:
        with translate_errors():
            found = crossings(shards, list_tables(database(entry.source, source).dsn))
        sizes = {str(shard.number): len(shard.tables) for shard in shards}
        sentence = "; ".join(
            f"{one.child} (shard {one.shards[0]}) refers to {one.parent} (shard {one.shards[1]})"
            for one in found
        )
        return dg.AssetCheckResult(
            passed=not found,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{sentence}: they are copied at two snapshots. {RELOAD}"
            if found
            else f"Tables that foreign keys join are in one of {len(shards)} shards.",
            metadata={"tables by shard": sizes},
        )

    return check


def _sentence(new: Sequence[str], gone: Sequence[str], known: int) -> str:
    found = []
    if new:
        found.append(f"{', '.join(new)}: new in the source, and not synced yet.")
    if gone:
        found.append(f"{', '.join(gone)}: no longer in the source.")
    if not found:
        return f"All {known} tables that match are synced."
    return " ".join([*found, RELOAD])
