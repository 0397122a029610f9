"""The list of a source's tables as an asset: a check names those that match and are not synced."""

from collections.abc import Sequence

import dagster as dg

from replica_platform.app.entries import TableEntry, XminTablesEntry
from replica_platform.app.entries.base import host_tags
from replica_platform.policies import named_job, translate_errors
from replica_platform.resources.postgres import PostgresDatabase, database
from replica_platform.xmin import list_tables


def catalog_definitions(entry: XminTablesEntry, loaded: Sequence[TableEntry]) -> dg.Definitions:
    """Return the list of tables of an entry with patterns, its check, and the check's schedule.

    Args:
        entry: The entry.
        loaded: The tables that its patterns stood for when the definitions were loaded.
    """
    catalog = dg.AssetSpec(
        f"{entry.name}_catalog",
        group_name="source",
        kinds={"postgres"},
        tags=host_tags(entry.host),
        description=f"The list of tables that {entry.name} takes by pattern.",
    )

    @dg.asset_check(
        asset=catalog.key,
        name="every_matching_table_is_synced",
        description="The tables that match the patterns are those that the definitions were "
        "loaded with.",
    )
    def every_matching_table_is_synced(
        source: dg.ResourceParam[PostgresDatabase],
    ) -> dg.AssetCheckResult:
        with translate_errors():
            present = list_tables(database(entry.source, source).dsn)
            matching = {table.table for table in entry.resolved(present)}
        known = {table.table for table in loaded}
        new, gone = sorted(matching - known), sorted(known - matching)
        return dg.AssetCheckResult(
            passed=not new and not gone,
            severity=dg.AssetCheckSeverity.WARN,
            description=_sentence(new, gone, len(known)),
            metadata={"new": new, "gone": gone, "tables": len(known)},
        )

    return dg.Definitions(
        assets=[catalog],
        asset_checks=[every_matching_table_is_synced],
        schedules=[
            dg.ScheduleDefinition(
                name=f"{entry.name}_new_tables",
                target=named_job(
                    f"{entry.name}_new_tables",
                    dg.AssetSelection.checks(every_matching_table_is_synced),
                    f"Looks for new tables that match {entry.name}.",
                ),
                cron_schedule=entry.catalog_cron_schedule,
                execution_timezone=entry.timezone,
                default_status=dg.DefaultScheduleStatus.RUNNING,
                description=f"Whether tables that match {entry.name} are new in the source.",
            )
        ],
    )


def _sentence(new: Sequence[str], gone: Sequence[str], known: int) -> str:
    found = []
    if new:
        found.append(f"{', '.join(new)}: new in the source, and not synced yet.")
    if gone:
        found.append(f"{', '.join(gone)}: no longer in the source.")
    if not found:
        return f"All {known} tables that match are synced."
    return " ".join(
        [*found, "Reload the definitions (Deployment, Reload; or start `replica dev`)."]
    )
