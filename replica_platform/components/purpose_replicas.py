"""Purpose replicas, listed in a `defs.yaml`: a part of the master, masked, for one use."""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
from dagster.components import Component, ComponentLoadContext, Model, Resolvable

from replica_platform.market.tables import data_as_of
from replica_platform.policies import (
    AFTER_PARENTS,
    EACH_SESSION,
    MASTER_POOL,
    TRANSIENT,
    after,
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

    Values that are masked, and columns that are not listed, appear nowhere in the bytes of the
    file.

    Attributes:
        purposes: For each name its `tables` (each with columns, left_out, where, mask) and the
            options keep, min_age_s, max_age_s and salt_env.
    """

    purposes: Mapping[str, Mapping[str, Any]]

    def build_defs(self, context: ComponentLoadContext) -> dg.Definitions:
        """Return an asset and three checks for each purpose."""
        if (file := context.path / "defs.yaml").exists():
            assert_keys_once(file)
        purposes = [Purpose.from_dict(name, given) for name, given in self.purposes.items()]
        return dg.Definitions(
            assets=[_asset(purpose) for purpose in purposes],
            asset_checks=[_checks(purpose) for purpose in purposes],
        )


def _key(purpose: Purpose) -> dg.AssetKey:
    return dg.AssetKey(["purposes", purpose.name])


def _asset(purpose: Purpose) -> dg.AssetsDefinition:
    @dg.asset(
        key=_key(purpose),
        deps=["symbols", "ohlcv", "indicators", "watchlist"],
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
                as_of = data_as_of(connection)
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
        name=f"{purpose.name}_checks", specs=specs, can_subset=True, pool=MASTER_POOL
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
