"""Purpose replicas, listed in a `defs.yaml`: a part of the master, masked, for one use."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Any

import dagster as dg
import duckdb
from dagster.components import Component, ComponentLoadContext, Model, Resolvable

from replica_platform.components.sample import sample_is_included
from replica_platform.components.scrubbed import scrub_result
from replica_platform.policies import (
    AFTER_PARENTS,
    EACH_SESSION,
    MASTER_POOL,
    TRANSIENT,
    after,
    repair_key,
    translate_errors,
)
from replica_platform.replica import (
    Candidate,
    Purpose,
    prepare,
    status,
    unlisted_columns,
    verify,
)
from replica_platform.replica.purpose.rules import assert_keys_once
from replica_platform.resources.master import MasterDuckDB
from replica_platform.resources.store import ReplicaStore


class PurposeReplicas(Component, Model, Resolvable):
    """An asset for each purpose: some tables, columns and rows of the master, in a separate file.

    A schedule reads the kept generations of all purposes in turn, as `replica_scrub` does.

    Values that are masked, and columns that are not listed, appear nowhere in the bytes of the
    file.

    Attributes:
        purposes: For each name its `tables` (each with columns, left_out, where, mask) and the
            options keep, min_age_s, max_age_s and salt_env.
        name: The name of the entry; the repair sensor of another one than `purposes` carries it.
        after: The assets that write the master; the purposes are published when they changed. The
            purpose's own tables when absent.
        as_of: A query of the master for the time of its newest data, shown with each generation.
        sample: Whether these purposes belong to the sample.
    """

    purposes: Mapping[str, Mapping[str, Any]]
    name: str = "purposes"
    after: Sequence[str] = ()
    as_of: str | None = None
    sample: bool = False

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """Return an asset and four checks for each purpose, a schedule and a sensor."""
        if self.sample and not sample_is_included():
            return dg.Definitions()
        if (file := context.path / "defs.yaml").exists():
            assert_keys_once(file)
        purposes = [Purpose.from_dict(name, given) for name, given in self.purposes.items()]
        scrubs = [_scrub_check(purpose) for purpose in purposes]
        return dg.Definitions(
            assets=[self._asset(purpose) for purpose in purposes],
            asset_checks=[*(_checks(purpose) for purpose in purposes), *scrubs],
            schedules=[self._scrub(scrubs)] if purposes else [],
            sensors=[self._repair(purposes)] if purposes else [],
        )

    def _scrub(self, checks: Sequence[dg.AssetChecksDefinition]) -> dg.ScheduleDefinition:
        return dg.ScheduleDefinition(
            name="purpose_scrub" if self.name == "purposes" else f"{self.name}_scrub",
            target=dg.AssetSelection.checks(*checks),
            cron_schedule="50 * * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description="A share of the purposes' kept generations each hour, all within a week.",
        )

    def _repair(self, purposes: Sequence[Purpose]) -> dg.SensorDefinition:
        @dg.sensor(
            name="purpose_repair" if self.name == "purposes" else f"{self.name}_repair",
            target=dg.AssetSelection.assets(*map(_key, purposes)),
            minimum_interval_seconds=60,
            default_status=dg.DefaultSensorStatus.RUNNING,
            description="Publishes a purpose whose replica is missing, damaged or behind.",
        )
        def purpose_repair(
            context: dg.SensorEvaluationContext, master: MasterDuckDB, store: ReplicaStore
        ) -> Iterator[dg.RunRequest | dg.SkipReason]:
            if not master.path.exists():
                yield dg.SkipReason("There is no master yet.")
                return
            for purpose in purposes:
                key = _key(purpose)
                found = status(store.path_of(key), master.path)
                if found.ok:
                    continue
                context.log.warning(f"{purpose.name}: {found.sentence}")
                yield dg.RunRequest(
                    run_key=f"{purpose.name}-{repair_key(context, found.generation)}",
                    asset_selection=[key],
                )

        return purpose_repair

    def _asset(self, purpose: Purpose) -> dg.AssetsDefinition:
        tables = [name.split(".")[-1] for name in purpose.tables]

        @dg.asset(
            key=_key(purpose),
            deps=list(self.after or tables),
            group_name="replica",
            kinds={"duckdb"},
            owners=["team:market"],
            io_manager_key="published_replica",
            pool=MASTER_POOL,
            retry_policy=TRANSIENT,
            freshness_policy=EACH_SESSION,
            automation_condition=AFTER_PARENTS,
            description=f"A replica for {purpose.name}: only {', '.join(purpose.tables)}.",
        )
        def replica(
            context: dg.AssetExecutionContext, master: MasterDuckDB, store: ReplicaStore
        ) -> dg.MaterializeResult[Candidate]:
            with translate_errors():
                with master.read() as connection:
                    as_of = data_as_of(connection, self.as_of) if self.as_of else None
                candidate = prepare(
                    master.path,
                    store.path_of(_key(purpose)),
                    purpose=purpose,
                    data_as_of=as_of,
                    run_id=context.run.run_id,
                )
            return dg.MaterializeResult(
                value=candidate, data_version=dg.DataVersion(str(candidate.generation))
            )

        return replica


def _key(purpose: Purpose) -> dg.AssetKey:
    return dg.AssetKey(["purposes", purpose.name])


def data_as_of(connection: duckdb.DuckDBPyConnection, query: str) -> datetime | None:
    """Return the first value of a query as a time; a day is its midnight in UTC."""
    row = connection.execute(query).fetchone()
    found = row[0] if row else None
    if isinstance(found, datetime):
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return datetime.combine(found, time(), UTC) if isinstance(found, date) else None


def _scrub_check(purpose: Purpose) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=_key(purpose),
        name="kept_bytes_are_intact",
        description="Every byte of the kept generations is read within a week; damage is repaired.",
    )
    def kept_bytes_are_intact(store: ReplicaStore) -> dg.AssetCheckResult:
        return scrub_result(store, _key(purpose))

    return kept_bytes_are_intact


def _checks(purpose: Purpose) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(
            "published_bytes_are_intact",
            asset=_key(purpose),
            automation_condition=after(_key(purpose)),
            blocking=True,
            description="Every byte matches the manifest, and every table can be read.",
        ),
        dg.AssetCheckSpec(
            "replica_is_fresh",
            asset=_key(purpose),
            automation_condition=after(_key(purpose)),
            description="The generation shows the present master, within the purpose's max_age_s.",
        ),
        dg.AssetCheckSpec(
            "every_column_is_listed",
            asset=_key(purpose),
            automation_condition=after(_key(purpose)),
            description="The purpose lists or leaves out every column of its tables, "
            "new ones included.",
        ),
    ]

    @dg.multi_asset_check(
        name=f"{_key(purpose).to_python_identifier()}_checks",
        specs=specs,
        can_subset=True,
        pool=MASTER_POOL,
    )
    def checks(master: MasterDuckDB, store: ReplicaStore) -> Iterator[dg.AssetCheckResult]:
        path = store.path_of(_key(purpose))
        with translate_errors():
            verification = verify(path)
            found = status(path, master.path)
            unlisted = unlisted_columns(purpose, master.path)
        yield dg.AssetCheckResult(
            asset_key=_key(purpose),
            check_name="published_bytes_are_intact",
            passed=verification.ok,
            description=verification.sentence,
        )
        yield dg.AssetCheckResult(
            asset_key=_key(purpose),
            check_name="replica_is_fresh",
            passed=found.ok,
            severity=dg.AssetCheckSeverity.WARN,
            description=found.sentence,
            metadata={"publication_age_seconds": found.publication_age_s},
        )
        yield dg.AssetCheckResult(
            asset_key=_key(purpose),
            check_name="every_column_is_listed",
            passed=unlisted.ok,
            severity=dg.AssetCheckSeverity.WARN,
            description=unlisted.sentence,
            metadata={"columns": list(unlisted.columns)},
        )

    return checks
