"""Events of the tables that changed; one that did not is reported once in a while.

A run of a job of assets writes events for each asset of its selection, whether it changed or not:
hundreds of tables every few minutes would fill Dagster's database. A job of one op plans nothing,
and yields events only for what there is to tell.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationTargetMaterializationData,
)

Reported = dg.AssetMaterialization | AssetCheckEvaluation


def unreported(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey], within_s: float
) -> set[dg.AssetKey]:
    """Return the assets without a materialisation in the last `within_s` seconds."""
    since = (datetime.now(UTC) - timedelta(seconds=within_s)).timestamp()
    keys = set(keys)
    recent = {
        record.asset_entry.asset_key
        for record in instance.get_asset_records(list(keys))
        if (last := record.asset_entry.last_materialization) and last.timestamp > since
    }
    return keys - recent


def reported(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    metadata: Mapping[str, Any],
    results: Iterable[dg.AssetCheckResult],
    blocking: frozenset[str],
) -> Iterator[Reported]:
    """Yield the materialisation of an asset, then its checks as evaluated after it.

    Args:
        instance: The instance that stores what is yielded before the next one is asked for.
        key: The asset.
        metadata: The metadata of the materialisation.
        results: The results of the asset's checks, computed after the materialisation.
        blocking: The names of the checks that block what depends on the asset.
    """
    yield dg.AssetMaterialization(key, metadata=metadata)
    target = _newest_materialisation(instance, key)
    for result in results:
        name = result.check_name or ""
        yield AssetCheckEvaluation(
            asset_key=key,
            check_name=name,
            passed=result.passed,
            metadata=result.metadata,
            target_materialization_data=target,
            severity=result.severity,
            description=result.description,
            blocking=name in blocking,
        )


def _newest_materialisation(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> AssetCheckEvaluationTargetMaterializationData | None:
    """Return what a check was evaluated of; without it, dependents would wait for the check."""
    found = instance.fetch_materializations(key, limit=1).records
    if not found:
        return None
    newest = found[0]
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=newest.storage_id, run_id=newest.run_id, timestamp=newest.timestamp
    )
