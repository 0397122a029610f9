"""The published replica of the master, audited before readers see it."""

from collections.abc import Iterator

import dagster as dg

from replica_platform.core.errors import PlatformError
from replica_platform.market.checks import TABLES, audit_scope, broken_rules
from replica_platform.market.tables import data_as_of
from replica_platform.policies import (
    AFTER_PARENTS,
    EACH_SESSION,
    MASTER_POOL,
    TRANSIENT,
    translate_errors,
)
from replica_platform.replica import Candidate, ReplicaReader, prepare, repair, status
from replica_platform.resources.master import MasterDuckDB
from replica_platform.resources.store import MARKET_REPLICA, ReplicaStore

AUDIT = dg.AssetCheckSpec(
    "candidate_is_sound",
    asset="market_replica",
    blocking=True,
    description="Every rule of every table holds in the candidate, before readers see it.",
)


class Publishing(dg.Config):
    """How to publish.

    Attributes:
        new_lineage: Accept a master that was rebuilt or restored.
    """

    new_lineage: bool = False


@dg.asset(
    # By name, so that this folder loads without the assets that write the master.
    deps=list(TABLES),
    group_name="replica",
    kinds={"duckdb"},
    owners=["team:market"],
    io_manager_key="published_replica",
    output_required=False,
    check_specs=[AUDIT],
    pool=MASTER_POOL,
    retry_policy=TRANSIENT,
    freshness_policy=EACH_SESSION,
    automation_condition=AFTER_PARENTS,
)
def market_replica(
    context: dg.AssetExecutionContext,
    config: Publishing,
    master: MasterDuckDB,
    store: ReplicaStore,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[Candidate]]:
    """One generation of the master, queried by any number of readers while the batch writes."""
    with translate_errors():
        with master.read() as connection:
            as_of = data_as_of(connection)
        _repair(context, store)
        candidate = prepare(
            master.path,
            store.path,
            keep=store.keep,
            data_as_of=as_of,
            run_id=context.run.run_id,
            new_lineage=config.new_lineage,
            required=TABLES,
        )
    broken = _audit(candidate, store)
    yield dg.AssetCheckResult(
        check_name=AUDIT.name,
        passed=not broken,
        description=(
            f"The candidate breaks {', '.join(broken)}; readers stay on the generation they have. "
            "Correct the master's tables and materialise market_replica again."
            if broken
            else "Every rule holds in the candidate."
        ),
        metadata={"broken_rules": len(broken)},
    )
    if broken:
        candidate.discard()
        raise dg.Failure(
            f"Not published: the candidate breaks {', '.join(broken)}.", allow_retries=False
        )
    yield dg.MaterializeResult(
        value=candidate, data_version=dg.DataVersion(str(candidate.generation))
    )


def _repair(context: dg.AssetExecutionContext, store: ReplicaStore) -> None:
    """Fetch damaged or missing blocks from the block store: faster than a new publication."""
    blocks = store.block_store(MARKET_REPLICA)
    if blocks is None or status(store.path).generation is None:
        return
    try:
        repaired = repair(store.path, block_store=blocks, read_all=False)
    except PlatformError as error:
        context.log.warning(f"Not repaired from the block store, so it is published again: {error}")
        return
    if repaired:
        context.log.info(f"Generation {repaired.generation} was repaired from the block store.")


def _audit(candidate: Candidate, store: ReplicaStore) -> list[str]:
    """Return the rules that the candidate breaks, in the days that readers do not have yet."""
    with ReplicaReader(store.path) as published, candidate.read() as connection:
        since = audit_scope(connection, published)
        return [
            f"{table}: “{broken.rule}”"
            for table in TABLES
            for broken in broken_rules(connection, table, since)
        ]
