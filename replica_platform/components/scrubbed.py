"""The result of the check that reads a share of the kept generations of one replica."""

import dagster as dg

from replica_platform.policies import translate_errors
from replica_platform.replica import NothingPublished, scrub
from replica_platform.resources.store import ReplicaStore


def scrub_result(store: ReplicaStore, key: dg.AssetKey) -> dg.AssetCheckResult:
    """Scrub an asset's store; a repaired generation is a warning.

    Without blocks to repair it from, its repair sensor publishes the current generation again.
    """
    with translate_errors():
        try:
            found = scrub(store.path_of(key), block_store=store.block_store(key))
        except NothingPublished as error:
            return dg.AssetCheckResult(asset_key=key, passed=True, description=str(error))
    return dg.AssetCheckResult(
        asset_key=key,
        passed=found.ok and not found.damaged,
        severity=dg.AssetCheckSeverity.WARN if found.ok else dg.AssetCheckSeverity.ERROR,
        description=found.sentence,
        metadata={"bytes_read": found.bytes_read, "damaged": len(found.damaged)},
    )
