"""Tables synced from one Postgres to another, listed in a `defs.yaml` by name or by pattern."""

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster.components import Component, ComponentLoadContext, Resolvable

from replica_platform.app.catalog import Catalog
from replica_platform.app.entries import TableEntry, XminTablesEntry
from replica_platform.app.entries.base import host_tags
from replica_platform.app.recording import record_integrity, record_syncs
from replica_platform.app.shards import Shard, shards_of
from replica_platform.components.changed_only import Reported, reported, unreported
from replica_platform.components.machine import current_machine, is_shown, with_catalog
from replica_platform.components.running_sync import Handover, RunningSync
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
from replica_platform.metadata import history, key_part
from replica_platform.pictures import sentence_of, with_picture
from replica_platform.policies import TRANSIENT, by_a_person, reported_every, translate_errors
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

# Of the assets and runs of a shard: its number.
SHARD_TAG = "replica_platform/shard"

BLOCKING = frozenset({"is_intact"})


@with_attributes
@dg.scaffold_with(ExampleScaffolder)
class XminTables(Component, XminTablesEntry, Resolvable):
    """Tables of a Postgres, kept in step in another one: every committed change, once.

    All tables of a group are synced in one step from one snapshot of the source; with `shards`,
    in several steps, jobs and schedules at the same time, tables that foreign keys join in one of
    them. The check `is_intact` compares keys and xmin of both sides and blocks below a score;
    `is_fresh` warns when the last sync is too old. The job of the schedule reports and checks the
    tables that changed; it reports an unchanged one every `report_unchanged_s` seconds.

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
        needed = self.has_patterns or self.shards > 1
        catalog = current_machine().catalog(self.source, needed=needed)
        group = _Group(self, catalog)
        definitions = dg.Definitions.merge(
            *([group.definitions()] if group.tables else []),
            *([catalog_definitions(self, group.shards)] if needed else []),
        )
        return with_catalog(definitions, self.source, catalog)


class _Group:
    """The tables of an entry as they are when definitions are loaded."""

    def __init__(self, entry: XminTables, catalog: Catalog) -> None:
        self.entry = entry
        self.tables = entry.resolved(catalog.tables)
        self.shards = shards_of(entry, self.tables, catalog.tables)
        self._listed = {table.name: table for table in catalog.tables}
        self._is_shown = is_shown()
        self._freshness = reported_every(entry.report_unchanged_s, entry.fresh_within_s)

    def definitions(self) -> dg.Definitions:
        """Return the assets of the tables; of each shard the step, checks, job and schedule."""
        jobs = [self._job(shard) for shard in self.shards]
        return dg.Definitions(
            assets=[*map(self._external, self.tables), *map(self._sync, self.shards)],
            asset_checks=list(map(self._checks, self.shards)),
            jobs=jobs,
            schedules=[
                self._schedule(shard, job) for shard, job in zip(self.shards, jobs, strict=True)
            ],
        )

    def _schedule(self, shard: Shard, job: dg.JobDefinition) -> dg.ScheduleDefinition:
        """Return the schedule of a shard: a run a shard, so that none waits for another one."""
        entry = self.entry
        return dg.ScheduleDefinition(
            name=job.name,
            target=job,
            cron_schedule=entry.cron_schedule,
            execution_timezone=entry.timezone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=f"{self._every_table(shard)}, by xmin.",
        )

    def _every_table(self, shard: Shard) -> str:
        of_shard = f"shard {shard.number} of " if shard.number else ""
        return f"Every table of {of_shard}{self.entry.name}"

    def _pool(self, shard: Shard) -> str:
        return self.entry.pool or shard.named(self.entry.name)

    def _tags(self, shard: Shard) -> dict[str, str]:
        return {SHARD_TAG: str(shard.number)} if shard.number else {}

    def _external(self, table: TableEntry) -> dg.AssetSpec:
        listed = self._listed.get(TableName.parse(table.table))
        comment = f" {listed.comment}" if listed and listed.comment else ""
        return dg.AssetSpec(
            self._source_key(TableName.parse(table.table)),
            group_name="source",
            kinds={"postgres"},
            description=f"{table.table} in the source database; others write it.{comment}",
            metadata=table_metadata(listed) if listed and self._is_shown else {},
        )

    def _source_key(self, name: TableName) -> dg.AssetKey:
        source = self.entry.source
        prefix = source.lower().removesuffix("_dsn") if source else "source"
        return dg.AssetKey([prefix, key_part(name.schema), key_part(name.table)])

    @cached_property
    def keys(self) -> dict[dg.AssetKey, TableEntry]:
        """The table of each synced asset."""
        return {self._target_key(table): table for table in self.tables}

    def _keys_of(self, shard: Shard) -> dict[dg.AssetKey, TableEntry]:
        names = {table.table for table in shard.tables}
        return {key: table for key, table in self.keys.items() if table.table in names}

    def _target_key(self, table: TableEntry) -> dg.AssetKey:
        target = self.entry.target_of(table)
        other = self.entry.target
        prefix = [other.lower().removesuffix("_dsn")] if other else []
        return dg.AssetKey([*prefix, key_part(target.schema), key_part(target.table)])

    def _spec(self, shard: Shard, key: dg.AssetKey, table: TableEntry) -> dg.AssetSpec:
        entry = self.entry
        listed = self._listed.get(TableName.parse(table.table))
        comment = f"{listed.comment}\n\n" if listed and listed.comment else ""
        return dg.AssetSpec(
            key,
            deps=[self._source_key(TableName.parse(table.table))],
            group_name=entry.group,
            kinds={"postgres", "table"},
            owners=list(entry.owners),
            tags={**entry.asset_tags, **self._tags(shard)},
            skippable=True,
            freshness_policy=self._freshness,
            description=f"{comment}{table.table} of the source: every committed change, once.",
            metadata=self._described(table) if self._is_shown else {},
        )

    def _described(self, table: TableEntry) -> dict[str, Any]:
        """Return what the source's catalog tells of the columns that are copied."""
        name = TableName.parse(table.table)
        listed = self._listed.get(name)
        if listed is None:
            return {}
        return table_metadata(copied_columns(listed, table), self._source_key(name))

    def _sync(self, shard: Shard) -> dg.AssetsDefinition:
        entry, of_shard = self.entry, self._keys_of(shard)

        @dg.multi_asset(
            name=shard.named(f"{entry.name}_tables"),
            specs=[self._spec(shard, key, table) for key, table in of_shard.items()],
            can_subset=True,
            pool=self._pool(shard),
            retry_policy=TRANSIENT,
        )
        def sync(
            context: dg.AssetExecutionContext,
            platform: PlatformConfig,
            source: dg.ResourceParam[PostgresDatabase],
            target: dg.ResourceParam[PostgresDatabase],
        ) -> Iterator[dg.MaterializeResult]:
            selected = context.selected_asset_keys
            tables = [table for key, table in of_shard.items() if key in selected]
            sync = partial(self._sync_tables, tables, platform, source, target)
            running = RunningSync(sync, context.log, len(tables))
            stills = platform.stills(by_a_person=by_a_person(context.run), target=target.dsn)
            for report in running:
                name = report.target_table
                key = self.keys_by_name[name]
                context.log.info(f"{name}: {report.mode}. {report.why}")
                metadata = sync_metadata(report, self._described(self.keys[key]))
                metadata |= history(stills.of_table(name))
                yield dg.MaterializeResult(asset_key=key, metadata=metadata)
            _raise_failures(running.group)

        return sync

    @cached_property
    def keys_by_name(self) -> dict[str, dg.AssetKey]:
        """The synced assets by the names of their tables in the target, as in reports."""
        return {str(self.entry.target_of(table)): key for key, table in self.keys.items()}

    def _job(self, shard: Shard) -> dg.JobDefinition:
        """Return the job of a schedule: one step, with events of what changed."""
        entry = self.entry

        @dg.op(
            name=shard.named(f"sync_{entry.name}"),
            out={},
            pool=self._pool(shard),
            retry_policy=TRANSIENT,
        )
        def sync_changed(
            context: dg.OpExecutionContext,
            platform: PlatformConfig,
            source: dg.ResourceParam[PostgresDatabase],
            target: dg.ResourceParam[PostgresDatabase],
        ) -> Iterator[Reported]:
            due = unreported(context.instance, self._keys_of(shard), entry.report_unchanged_s)
            sync = self._watch_tables if entry.watch_s else self._sync_tables
            running = RunningSync(
                partial(sync, shard.tables, platform, source, target),
                context.log,
                len(shard.tables),
            )
            problems = []
            scores: dict[str, float] = {}
            stills = platform.stills(by_a_person=by_a_person(context.run), target=target.dsn)
            for report in running:
                key = self.keys_by_name[report.target_table]
                if not report.changed and key not in due:
                    continue
                context.log.info(f"{report.target_table}: {report.mode}. {report.why}")
                metadata = sync_metadata(report, self._described(self.keys[key]))
                metadata |= history(stills.of_table(report.target_table))
                if entry.watch_s:
                    metadata |= watch_metadata(running.group)
                results = self._evaluate(key, source, target, scores)
                for event in reported(context.instance, key, metadata, results, BLOCKING):
                    yield event
                    problems += _problem(event)
            record_integrity(target.dsn, scores)
            context.log.info(running.group.sentence)
            _raise_failures(running.group)
            if problems:
                raise dg.Failure("; ".join(problems), allow_retries=False)

        @dg.graph(name=shard.named(f"{entry.name}_sync"))
        def steps() -> None:
            sync_changed()

        # An op job that tells which assets it writes, so that their pages name it and its
        # schedule; a run plans no events of them, as one of an asset job would.
        named = self._keys_of(shard) if steps.name > IMPLICIT_ASSET_JOB_NAME else ()
        outside = dg.JobDefinition.for_external_job(named, f"{steps.name}_writes")
        return dg.JobDefinition(
            graph_def=steps,
            # A job of an op has no assets that a run could take its host from.
            tags={**self._tags(shard), **host_tags(entry.host)},
            description=f"{self._every_table(shard)}, by xmin; reports those that changed, and "
            f"the others every {format_age(entry.report_unchanged_s)}.",
            asset_layer=outside.asset_layer,
        )

    def _sync_tables(
        self,
        tables: Sequence[TableEntry],
        platform: PlatformConfig,
        source: PostgresDatabase,
        target: PostgresDatabase,
        handover: Handover,
    ) -> GroupReport:
        """Sync tables once, and hand over the report of each as it is committed."""
        entry = self.entry
        with translate_errors():
            group = sync_group(
                database(entry.source, source).dsn,
                database(entry.target, target).dsn,
                [entry.spec(table) for table in tables],
                on_report=handover.report,
                progress=handover.progress,
                **self._options(platform),
            )
        record_syncs(target.dsn, group.reports)
        return group

    def _watch_tables(
        self,
        tables: Sequence[TableEntry],
        platform: PlatformConfig,
        source: PostgresDatabase,
        target: PostgresDatabase,
        handover: Handover,
    ) -> GroupReport:
        """Sync tables for the time of a run, and hand over one report of each at the end."""
        entry = self.entry
        with translate_errors():
            group = watch_for(
                entry.watch_s or 0,
                database(entry.source, source).dsn,
                database(entry.target, target).dsn,
                [entry.spec(table) for table in tables],
                stop=handover.stop,
                **self._options(platform),
            )
        record_syncs(target.dsn, group.reports)
        handover.all_at_once(group)
        return group

    def _options(self, platform: PlatformConfig) -> dict[str, Any]:
        entry = self.entry
        return {
            "workers": platform.xmin_workers,
            "batch_bytes": platform.xmin_batch_bytes,
            "max_delete_fraction": entry.max_delete_fraction,
            "prove": Proving(entry.prove_within_s) if entry.prove_within_s else None,
            "blocks": BlockOptions(checkpoint=entry.checkpoint),
            "max_snapshot_s": entry.max_snapshot_s,
            "max_source_connections": entry.max_source_connections,
            "max_source_fraction": entry.max_source_fraction,
        }

    def _checks(self, shard: Shard) -> dg.AssetChecksDefinition:
        """Return the checks of a shard as one step: a step each costs more than most checks."""
        entry = self.entry

        @dg.multi_asset_check(
            # a replica may have the name of the tables' step too
            name=shard.named(f"{entry.name}_tables_checks"),
            specs=[spec for key in self._keys_of(shard) for spec in self._check_specs(key)],
            can_subset=True,
            pool=self._pool(shard),
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
