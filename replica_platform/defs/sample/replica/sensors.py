"""The repair of the published replica without waiting for the next run of the market."""

from collections.abc import Iterator

import dagster as dg

from replica_platform.defs.sample.replica.assets import market_replica
from replica_platform.policies import repair_key
from replica_platform.replica import status
from replica_platform.resources.master import MasterDuckDB
from replica_platform.resources.store import ReplicaStore


@dg.sensor(
    target=dg.AssetSelection.assets(market_replica),
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Publishes when the replica is missing, damaged or behind its master.",
)
def replica_repair(
    context: dg.SensorEvaluationContext, master: MasterDuckDB, store: ReplicaStore
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Compare lineage and manifest; the asset's blocking check reads the bytes."""
    if not master.path.exists():
        yield dg.SkipReason("There is no master yet.")
        return
    found = status(store.path, master.path)
    if found.ok:
        yield dg.SkipReason(found.sentence)
        return
    context.log.warning(found.sentence)
    yield dg.RunRequest(run_key=repair_key(context, found.generation))
