"""Tables synced from one Postgres to another, listed in a `defs.yaml` by name or by pattern."""

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster.components import Component, ComponentLoadContext, Resolvable

from replica_platform.app.catalog import Catalog
from replica_platform.app.entries import TableEntry, XminTablesEntry
from replica_platform.app.recording import record_integrity, record_syncs
from replica_platform.components.changed_only import Reported, reported, unreported
from replica_platform.components.machine import current_machine, with_catalog
from replica_platform.components.scaffolding import ExampleScaffolder, with_attributes
from replica_platform.components.xmin_catalog import catalog_definitions
from replica_platform.components.xmin_metadata import (
    ages_picture,
    copied_columns,
    integrity_metadata,
    sync_metadata,
    table_metadata,
    watch_metadata,
)
from replica_platform.core.errors import PlatformError
from replica_platform.core.reports import format_age
from replica_platform.metadata import key_part
from replica_platform.pictures import sentence_of, with_picture
from replica_platform.policies import TRANSIENT, reported_every, translate_errors
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase, database
from replica_platform.xmin import (
    BlockOptions,
    GroupReport,
    Proving,
    sync_group,
    validate,
    watch_for,
)
from replica_platform.xmin.names import TableName

BLOCKING = frozenset({"is_intact"})


@with_attributes
@dg.scaffold_with(ExampleScaffolder)
class XminTables(Component, XminTablesEntry, Resolvable):
    """Tables of a Postgres, kept in step in another one: every committed change, once.

    All tables of a group are synced in one step from one snapshot of the source. The check
    `is_intact` compares keys and xmin of both sides and blocks below a score; `is_fresh` warns
    when the last sync is too old. The job of the schedule reports and checks the tables that
    changed; it reports an unchanged one every `report_unchanged_s` seconds.

    A pattern is resolved when definitions are loaded, by the list of tables that the source gives
    then, or gave last. A table that is new and matches arrives with the next reload of the
    definitions; the check `every_matching_table_is_synced` names it before.

    Example:
        name: shop
        source: SHOP_DSN # the environment variable with the DSN, set here or in the file .env
        into: shop # the schema in the target
        tables:
          - table: public.*
            exclude: [public.sessions]
            left_out: [notes] # in whatever table there is such a column
            mask: {password: null}
    """

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """Return the external source tables, the synced assets, their checks and the schedule."""
        if not self.tables:
            return dg.Definitions()
        catalog = current_machine().catalog(self.source, needed=self.has_patterns)
        group = _Group(self, catalog)
        definitions = dg.Definitions.merge(
            *([group.definitions()] if group.tables else []),
            *([catalog_definitions(self, group.tables)] if self.has_patterns else []),
        )
        return with_catalog(definitions, self.source, catalog)


class _Group:
    """The tables of an entry as they are when definitions are loaded."""

    def __init__(self, entry: XminTables, catalog: Catalog) -> None:
        self.entry = entry
        self.tables = entry.resolved(catalog.tables)
        self._listed = {table.name: table for table in catalog.tables}

    def definitions(self) -> dg.Definitions:
        """Return the assets of the tables, their checks, job and schedule."""
        entry, job = self.entry, self._job()
        schedule = dg.ScheduleDefinition(
            name=f"{entry.name}_sync",
            target=job,
            cron_schedule=entry.cron_schedule,
            execution_timezone=entry.timezone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=f"Every table of {entry.name}, by xmin.",
        )
        return dg.Definitions(
            assets=[*map(self._external, self.tables), self._sync()],
            asset_checks=[self._checks()],
            jobs=[job],
            schedules=[schedule],
        )

    def _external(self, table: TableEntry) -> dg.AssetSpec:
        listed = self._listed.get(TableName.parse(table.table))
        comment = f" {listed.comment}" if listed and listed.comment else ""
        return dg.AssetSpec(
            self._source_key(TableName.parse(table.table)),
            group_name="source",
            kinds={"postgres"},
            description=f"{table.table} in the source database; others write it.{comment}",
            metadata=table_metadata(listed) if listed else {},
        )

    def _source_key(self, name: TableName) -> dg.AssetKey:
        source = self.entry.source
        prefix = source.lower().removesuffix("_dsn") if source else "source"
        return dg.AssetKey([prefix, key_part(name.schema), key_part(name.table)])

    @cached_property
    def keys(self) -> dict[dg.AssetKey, TableEntry]:
        """The table of each synced asset."""
        return {self._target_key(table): table for table in self.tables}

    def _target_key(self, table: TableEntry) -> dg.AssetKey:
        target = self.entry.target_of(table)
        other = self.entry.target
        prefix = [other.lower().removesuffix("_dsn")] if other else []
        return dg.AssetKey([*prefix, key_part(target.schema), key_part(target.table)])

    def _spec(self, key: dg.AssetKey, table: TableEntry) -> dg.AssetSpec:
        entry = self.entry
        listed = self._listed.get(TableName.parse(table.table))
        comment = f"{listed.comment}\n\n" if listed and listed.comment else ""
        return dg.AssetSpec(
            key,
            deps=[self._source_key(TableName.parse(table.table))],
            group_name=entry.group,
            kinds={"postgres", "table"},
            owners=list(entry.owners),
            tags=dict(entry.tags),
            skippable=True,
            freshness_policy=reported_every(entry.report_unchanged_s, entry.fresh_within_s),
            description=f"{comment}{table.table} of the source: every committed change, once.",
            metadata=self._described(table),
        )

    def _described(self, table: TableEntry) -> dict[str, Any]:
        """Return what the source's catalog tells of the columns that are copied."""
        name = TableName.parse(table.table)
        listed = self._listed.get(name)
        if listed is None:
            return {}
        return table_metadata(copied_columns(listed, table), self._source_key(name))

    def _sync(self) -> dg.AssetsDefinition:
        entry = self.entry

        @dg.multi_asset(
            name=f"{entry.name}_tables",
            specs=[self._spec(key, table) for key, table in self.keys.items()],
            can_subset=True,
            pool=entry.pool or entry.name,
            retry_policy=TRANSIENT,
        )
        def sync(
            context: dg.AssetExecutionContext,
            platform: PlatformConfig,
            source: dg.ResourceParam[PostgresDatabase],
            target: dg.ResourceParam[PostgresDatabase],
        ) -> Iterator[dg.MaterializeResult]:
            selected = context.selected_asset_keys
            tables = [table for key, table in self.keys.items() if key in selected]
            group = self._sync_tables(tables, platform, source, target)
            keys = self._keys_by_name(tables)
            for name, report in group.reports.items():
                context.log.info(f"{name}: {report.mode}. {report.why}")
                metadata = sync_metadata(report, self._described(self.keys[keys[name]]))
                yield dg.MaterializeResult(asset_key=keys[name], metadata=metadata)
            _raise_failures(group)

        return sync

    def _keys_by_name(self, tables: Sequence[TableEntry]) -> dict[str, dg.AssetKey]:
        return {str(self.entry.target_of(table)): self._target_key(table) for table in tables}

    def _job(self) -> dg.JobDefinition:
        """Return the job of the schedule: one step, with events of what changed."""
        entry, keys = self.entry, self._keys_by_name(self.tables)

        @dg.op(
            name=f"sync_{entry.name}", out={}, pool=entry.pool or entry.name, retry_policy=TRANSIENT
        )
        def sync_changed(
            context: dg.OpExecutionContext,
            platform: PlatformConfig,
            source: dg.ResourceParam[PostgresDatabase],
            target: dg.ResourceParam[PostgresDatabase],
        ) -> Iterator[Reported]:
            due = unreported(context.instance, keys.values(), entry.report_unchanged_s)
            group = self._sync_tables(self.tables, platform, source, target, watch_s=entry.watch_s)
            problems = []
            scores: dict[str, float] = {}
            for name, report in group.reports.items():
                key = keys[name]
                if not report.changed and key not in due:
                    continue
                context.log.info(f"{name}: {report.mode}. {report.why}")
                metadata = sync_metadata(report, self._described(self.keys[key]))
                metadata |= watch_metadata(group)
                results = self._evaluate(key, source, target, scores)
                for event in reported(context.instance, key, metadata, results, BLOCKING):
                    yield event
                    problems += _problem(event)
            record_integrity(target.dsn, scores)
            context.log.info(group.sentence)
            _raise_failures(group)
            if problems:
                raise dg.Failure("; ".join(problems), allow_retries=False)

        @dg.graph(name=f"{entry.name}_sync")
        def steps() -> None:
            sync_changed()

        # An op job that tells which assets it writes, so that their pages name it and its
        # schedule; a run plans no events of them, as one of an asset job would.
        named = keys.values() if steps.name > IMPLICIT_ASSET_JOB_NAME else ()
        outside = dg.JobDefinition.for_external_job(named, f"{entry.name}_writes")
        return dg.JobDefinition(
            graph_def=steps,
            description=f"Every table of {entry.name}, by xmin; reports those that changed, and "
            f"the others every {format_age(entry.report_unchanged_s)}.",
            asset_layer=outside.asset_layer,
        )

    def _sync_tables(
        self,
        tables: Sequence[TableEntry],
        platform: PlatformConfig,
        source: PostgresDatabase,
        target: PostgresDatabase,
        *,
        watch_s: float | None = None,
    ) -> GroupReport:
        entry = self.entry
        sync = partial(watch_for, watch_s) if watch_s else sync_group
        with translate_errors():
            group = sync(
                database(entry.source, source).dsn,
                database(entry.target, target).dsn,
                [entry.spec(table) for table in tables],
                workers=platform.xmin_workers,
                batch_bytes=platform.xmin_batch_bytes,
                max_delete_fraction=entry.max_delete_fraction,
                prove=Proving(entry.prove_within_s) if entry.prove_within_s else None,
                blocks=BlockOptions(checkpoint=entry.checkpoint),
                max_snapshot_s=entry.max_snapshot_s,
                max_source_connections=entry.max_source_connections,
                max_source_fraction=entry.max_source_fraction,
            )
        record_syncs(target.dsn, group.reports)
        return group

    def _checks(self) -> dg.AssetChecksDefinition:
        """Return the checks of all tables as one step: a step each costs more than most checks."""
        entry = self.entry

        @dg.multi_asset_check(
            name=f"{entry.name}_tables_checks",  # a replica may have the name too
            specs=[spec for key in self.keys for spec in self._check_specs(key)],
            can_subset=True,
            pool=entry.pool or entry.name,
        )
        def checks(
            context: dg.AssetCheckExecutionContext,
            source: dg.ResourceParam[PostgresDatabase],
            target: dg.ResourceParam[PostgresDatabase],
        ) -> Iterator[dg.AssetCheckResult]:
            selected = context.selected_asset_check_keys
            scores: dict[str, float] = {}
            for key in sorted({check.asset_key for check in selected}):
                for result in self._evaluate(key, source, target, scores):
                    if dg.AssetCheckKey(key, result.check_name or "") in selected:
                        yield result
            record_integrity(target.dsn, scores)

        return checks

    def _check_specs(self, key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
        return [
            dg.AssetCheckSpec(
                "is_intact",
                asset=key,
                blocking=True,
                description=f"The integrity score is at least {self.entry.threshold} of what can "
                "be proven: no key is missing, stale or extra.",
            ),
            dg.AssetCheckSpec(
                "is_fresh",
                asset=key,
                description=f"The last sync was at most {self.entry.fresh_within_s} seconds ago.",
            ),
        ]

    def _evaluate(
        self,
        key: dg.AssetKey,
        source: PostgresDatabase,
        target: PostgresDatabase,
        scores: dict[str, float],
    ) -> Iterator[dg.AssetCheckResult]:
        """Yield the result of each check of a table; an engine's error fails both by its text.

        The table's score, 1 where nothing that can be proven is wrong, is added to `scores`.
        """
        entry = self.entry
        try:
            spec = entry.spec(self.keys[key])
            found = validate(
                database(entry.source, source).dsn,
                database(entry.target, target).dsn,
                spec.table,
                into=spec.into,
                key=spec.key,
                masks=spec.masks,
            )
        except PlatformError as error:
            for check in self._check_specs(key):
                yield dg.AssetCheckResult(
                    asset_key=key, check_name=check.name, passed=False, description=str(error)
                )
            return
        # How changes are found caps the score: that is how much can be proven, no damage.
        wanted = entry.threshold * found.terms["mode"]
        settled = found.settled_score >= wanted
        # 1 for what is settled: all that can be proven is, though the source may be ahead by now.
        scores[str(entry.target_of(self.keys[key]))] = 1.0 if settled else found.settled_score
        yield dg.AssetCheckResult(
            asset_key=key,
            check_name="is_intact",
            passed=found.score >= wanted or (settled and not found.extra_count),
            # Extra rows may be those that the source has deleted since: the next sync shows it.
            severity=dg.AssetCheckSeverity.WARN if settled else dg.AssetCheckSeverity.ERROR,
            description=with_picture(found.sentence, ages_picture(found)),
            metadata=integrity_metadata(found),
        )
        gap_s = found.gap_s
        fresh = gap_s is not None and gap_s <= entry.fresh_within_s
        yield dg.AssetCheckResult(
            asset_key=key,
            check_name="is_fresh",
            passed=fresh,
            severity=dg.AssetCheckSeverity.WARN,
            description=_freshness(gap_s, entry.fresh_within_s),
            metadata={"gap_seconds": gap_s, "gap_xids": found.gap_xids},
        )


def _freshness(gap_s: float | None, within_s: int) -> str:
    if gap_s is None:
        return "It was never synced; materialise it, and see whether the schedule runs."
    ago = f"The last sync was {format_age(gap_s)} ago"
    if gap_s <= within_s:
        return f"{ago}."
    return (
        f"{ago}, but should be at most {format_age(within_s)} ago; see whether the schedule runs."
    )


def _raise_failures(group: GroupReport) -> None:
    """Raise what failed; the other tables are committed, and the schedule repeats those."""
    if group.failures:
        raise dg.Failure(
            "; ".join(f"{table}: {why}" for table, why in group.failures.items()),
            allow_retries=False,
        )


def _problem(event: Reported) -> list[str]:
    """Return the sentence of a blocking check that failed, as a list of at most one."""
    if isinstance(event, dg.AssetMaterialization) or event.passed or not event.blocking:
        return []
    if event.severity is not dg.AssetCheckSeverity.ERROR:
        return []
    return [f"{event.asset_key.to_user_string()}: {sentence_of(event.description)}"]
