"""Workers' outboxes, by node, drained to the target; listed in a `defs.yaml`."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecord
from dagster.components import Component, ComponentLoadContext, Resolvable

from replica_platform.app.entries import WorkerOutboxesEntry
from replica_platform.app.entries.base import host_pool, host_tags
from replica_platform.components.scaffolding import ExampleScaffolder, with_attributes
from replica_platform.metadata import change, history
from replica_platform.outbox import backlog, drain, reconcile
from replica_platform.policies import (
    TRANSIENT,
    by_a_person,
    fresh_within,
    named_job,
    repair_key,
    translate_errors,
    waits_on_host,
)
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase, database

# The tag of a run that compares every record, as one that a person starts does.
REPAIRS = "replica_platform/repair"

# The columns of `outbox.record`, in the words of its page.
COLUMNS = dg.TableSchema(
    [
        dg.TableColumn("id", "uuid", "The record's identity, which `append` returned."),
        dg.TableColumn("file_uuid", "uuid", "The outbox that it was appended to."),
        dg.TableColumn("seq", "bigint", "Its place in that outbox."),
        dg.TableColumn("kind", "text", "What kind of record it is, in the words of the worker."),
        dg.TableColumn("payload", "jsonb", "What the worker appended."),
        dg.TableColumn("payload_sha", "bytea", "The digest that makes a changed resend noticed."),
        dg.TableColumn("created_at", "timestamp with time zone", "When it was appended."),
        dg.TableColumn("landed_at", "timestamp with time zone", "When it arrived here."),
    ]
)


@with_attributes
@dg.scaffold_with(ExampleScaffolder)
class WorkerOutboxes(Component, WorkerOutboxesEntry, Resolvable):
    """All records that workers append to local SQLite files, delivered to a Postgres, once.

    Each node has an asset with checks of its own, so that what is wrong with one node is not hidden
    by another. It is drained by a schedule, and soon after a new record by a sensor; the sensor is
    left out where the entry names a host, since sensors do not run there. A run that a person
    starts also sends again what the target has lost since its delivery.

    Example:
        name: shop
        nodes: # the folder of each node's outbox files, below the data folder or absolute
          local: outboxes/shop
        backlog_within_s: 900
    """

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """Return the external outboxes, the drained assets, their checks, schedule and sensor."""
        if not self.nodes:
            return dg.Definitions()
        outboxes = dg.AssetSpec(
            self._outboxes,
            group_name="source",
            kinds={"sqlite"},
            tags=host_tags(self.host),
            description="The local SQLite files that workers append to, one for each worker slot.",
        )
        return dg.Definitions(
            assets=[outboxes, *map(self._drained, self.nodes)],
            asset_checks=[
                make(node)
                for node in self.nodes
                for make in (self._nothing_is_missing, self._no_row_is_dead, self._is_fresh)
            ],
            schedules=[self._schedule()],
            # A sensor does not see the files of a host that is named; checks it does.
            sensors=[*([] if self.host else [self._sensor()]), self._repair()],
        )

    def _named(self, what: str) -> str:
        """Return the name of the schedule or sensor; one of another asset carries its name."""
        return f"{'outbox' if self.name == 'conversations' else self.name}_{what}"

    @property
    def _outboxes(self) -> str:
        return "worker_outboxes" if self.name == "conversations" else f"{self.name}_outboxes"

    @property
    def _pool(self) -> str:
        return host_pool(self.pool or self.name, self.host)

    def _key(self, node: str) -> dg.AssetKey:
        return dg.AssetKey(self.asset_path(node))

    def _folder(self, node: str, platform: PlatformConfig) -> Path:
        return platform.path(self.nodes[node])

    def _requests(
        self, reasons: Mapping[str, str], *, repairs: bool = False
    ) -> list[dg.RunRequest]:
        """Return a run for each node; Dagster starts a run once for the same node and reason."""
        return [
            dg.RunRequest(
                run_key=f"{node}: {reason}",
                asset_selection=[self._key(node)],
                tags={REPAIRS: "true"} if repairs else {},
            )
            for node, reason in reasons.items()
        ]

    def _drained(self, node: str) -> dg.AssetsDefinition:
        @dg.asset(
            key=self._key(node),
            deps=[self._outboxes],
            group_name=self.group,
            kinds={"postgres", "table"},
            metadata={"dagster/column_schema": COLUMNS},
            owners=list(self.owners),
            tags=self.asset_tags,
            pool=self._pool,
            retry_policy=TRANSIENT,
            freshness_policy=fresh_within(self.backlog_within_s),
            description="Every record that a worker's `append` acknowledged"
            f"{f' on {node}' if len(self.nodes) > 1 else ''}, once, in `outbox.record`.",
        )
        def drained(
            context: dg.AssetExecutionContext,
            platform: PlatformConfig,
            target: dg.ResourceParam[PostgresDatabase],
        ) -> dg.MaterializeResult:
            manual = by_a_person(context.run)
            with translate_errors():
                into = database(self.target, target)
                report = drain(
                    [self._folder(node, platform)],
                    into.dsn,
                    budget_s=self.drain_budget_s,
                    mappings=self.mappings,
                    # The breaker's waiting time is for automatic runs only.
                    force=manual,
                    # Compares every delivered row, which is too much for every 5 minutes.
                    repair=manual or REPAIRS in context.run.tags,
                )
                rows = into.row_count("outbox", "record") if not report.trouble else None
            if report.trouble:
                # No retry: each file's breaker knows when the next attempt makes sense.
                raise dg.Failure(report.sentence, allow_retries=False)
            return dg.MaterializeResult(
                metadata={
                    **change(report.delivered > 0, f"{report.delivered:,} records delivered"),
                    "dagster/row_count": rows,
                    "dagster/table_name": "outbox.record",
                    "delivered": report.delivered,
                    "resends_absorbed": report.absorbed,
                    "dead_rows": report.dead_rows,
                    "conflicts": report.conflicts,
                    "backlog": report.pending,
                    "drain_seconds": report.seconds,
                    "rows_per_second": report.rows_per_s,
                    **history(
                        platform.stills(by_a_person=manual, target=target.dsn).of_outbox(
                            [f"{self.name}/{node}"]
                        )
                    ),
                }
            )

        return drained

    def _nothing_is_missing(self, node: str) -> dg.AssetChecksDefinition:
        @dg.asset_check(asset=self._key(node), blocking=True, pool=self._pool)
        def nothing_is_missing(
            platform: PlatformConfig, target: dg.ResourceParam[PostgresDatabase]
        ) -> dg.AssetCheckResult:
            """Everything that an outbox marks as delivered is in the target."""
            with translate_errors():
                into = database(self.target, target)
                found = reconcile([self._folder(node, platform)], into.dsn)
            return dg.AssetCheckResult(
                passed=found.ok,
                description=found.sentence,
                metadata={
                    "rows_checked": found.rows_checked,
                    "rows_missing": found.rows_missing,
                    "batches_missing": found.batches_missing,
                },
            )

        return nothing_is_missing

    def _no_row_is_dead(self, node: str) -> dg.AssetChecksDefinition:
        @dg.asset_check(asset=self._key(node))
        def no_row_is_dead(platform: PlatformConfig) -> dg.AssetCheckResult:
            """No record was refused by the target, and none arrived again with other content."""
            found = backlog([self._folder(node, platform)])
            return dg.AssetCheckResult(
                passed=not found.dead and not found.conflicts,
                description=(
                    f"{found.dead:,} records cannot be delivered as they are and "
                    f"{found.conflicts:,} arrived again with other content; `replica dead --outbox "
                    "FILE` lists them, `--replay` tries them again."
                    if found.dead or found.conflicts
                    else "No record is dead."
                ),
                metadata={"dead_rows": found.dead, "conflicts": found.conflicts},
            )

        return no_row_is_dead

    def _is_fresh(self, node: str) -> dg.AssetChecksDefinition:
        @dg.asset_check(asset=self._key(node))
        def backlog_is_fresh(platform: PlatformConfig) -> dg.AssetCheckResult:
            """Every outbox can be read, and no record waits longer than `backlog_within_s`."""
            found = backlog([self._folder(node, platform)])
            age_s = found.oldest_pending_age_s
            return dg.AssetCheckResult(
                passed=age_s <= self.backlog_within_s and not found.unreachable,
                severity=dg.AssetCheckSeverity.WARN,
                description=found.sentence,
                metadata={"oldest_pending_seconds": age_s, "backlog": found.pending},
            )

        return backlog_is_fresh

    def _schedule(self) -> dg.ScheduleDefinition:
        assets = dg.AssetSelection.assets(*map(self._key, self.nodes))

        @dg.schedule(
            name=self._named("drain"),
            target=named_job(
                self._named("drain"), assets, f"Delivers every waiting record of {self.name}."
            ),
            cron_schedule=self.cron_schedule,
            execution_timezone=self.timezone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description="Delivers every waiting record.",
        )
        def outbox_drain(
            context: dg.ScheduleEvaluationContext,
        ) -> list[dg.RunRequest] | dg.SkipReason:
            if waits := waits_on_host(context, self._named("drain"), self.host):
                return waits
            # The same when Dagster repeats a tick; several requests need a run key each.
            tick = f"{context.scheduled_execution_time:%Y-%m-%d %H:%M}"
            return self._requests(dict.fromkeys(self.nodes, tick))

        return outbox_drain

    def _sensor(self) -> dg.SensorDefinition:
        @dg.sensor(
            name=self._named("backlog"),
            # The schedule's job, by name: Dagster copies the job that a target holds.
            job_name=self._named("drain"),
            minimum_interval_seconds=self.sensor_interval_s,
            default_status=dg.DefaultSensorStatus.RUNNING,
            description="Requests a drain for waiting records, once for the same records; "
            "the schedule repeats a drain that failed.",
        )
        def outbox_backlog(
            context: dg.SensorEvaluationContext, platform: PlatformConfig
        ) -> Iterator[dg.SensorResult | dg.SkipReason]:
            found = {node: backlog([self._folder(node, platform)]) for node in self.nodes}
            # Another delivery, or another number of records, is another reason.
            reasons = {
                node: f"{one.pending} since {one.last_delivery}"
                for node, one in found.items()
                if one.pending
            }
            cursor = "; ".join(f"{node}: {reason}" for node, reason in reasons.items())
            if not reasons:
                yield dg.SkipReason("Every record is delivered.")
            elif cursor == context.cursor:
                yield dg.SkipReason("A drain is already requested; the schedule tries again.")
            else:
                yield dg.SensorResult(self._requests(reasons), cursor=cursor)

        return outbox_backlog

    def _repair(self) -> dg.SensorDefinition:
        keys = {
            dg.AssetCheckKey(self._key(node), "nothing_is_missing"): node for node in self.nodes
        }

        @dg.sensor(
            name=self._named("repair"),
            job_name=self._named("drain"),
            minimum_interval_seconds=self.sensor_interval_s,
            default_status=dg.DefaultSensorStatus.RUNNING,
            description="Sends again what the target has lost, when nothing_is_missing is red. "
            "Switch it off before you delete records from the target on purpose.",
        )
        def outbox_repair(
            context: dg.SensorEvaluationContext,
        ) -> Iterator[dg.RunRequest | dg.SkipReason]:
            storage = context.instance.event_log_storage
            newest = storage.get_latest_asset_check_execution_by_key(list(keys))
            missing = {node: _missing(newest.get(key)) for key, node in keys.items()}
            # The same number again: a repair that did not help is not repeated at once.
            reasons = {
                node: repair_key(context, number) for node, number in missing.items() if number
            }
            if not reasons:
                yield dg.SkipReason("The last comparison found nothing missing.")
            yield from self._requests(reasons, repairs=True)

        return outbox_repair


def _missing(record: AssetCheckExecutionRecord | None) -> int:
    """Return how many records or batches the newest evaluation of `nothing_is_missing` missed.

    It may be red for another reason, such as a target that does not answer: no delivery helps then.
    """
    event = record.event.get_dagster_event() if record and record.event else None
    if event is None or event.event_type is not dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        return 0
    evaluation = event.asset_check_evaluation_data
    numbers = (evaluation.metadata.get(f"{what}_missing") for what in ("rows", "batches"))
    return 0 if evaluation.passed else sum(int(str(one.value)) for one in numbers if one)
