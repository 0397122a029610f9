"""Pools, retries, freshness, automation and errors: the rules that assets of all pillars share."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import dagster as dg

from replica_platform.core.errors import PlatformError, TransientError

# DuckDB has one writer: everything that opens the master takes this pool, checks included.
MASTER_POOL = "master"
TARGET_POOL = "target"
REPAIR_EVERY_S = 900

TRANSIENT = dg.RetryPolicy(
    max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)

# These tell when Dagster last materialised an asset; the age of its data is an asset check.
# Four days: from a Thursday's session to the next one after a long weekend.
EACH_SESSION = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(days=4, hours=3), warn_window=timedelta(days=3, hours=3)
)
EVERY_FEW_MINUTES = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(minutes=30), warn_window=timedelta(minutes=15)
)
DAILY = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(hours=50), warn_window=timedelta(hours=26)
)

# The tag of tables with a partition for each day that can be read again.
BY_DAY = {"replica_platform/partitions": "days"}

# Publish when a parent changed and its blocking checks passed. What is missing of a table by days
# does not count: a replica shows the days that there are.
AFTER_PARENTS = (
    dg.AutomationCondition.eager().replace(
        dg.AutomationCondition.any_deps_missing(),
        dg.AutomationCondition.any_deps_missing().ignore(
            dg.AssetSelection.tag(*next(iter(BY_DAY.items())))
        ),
    )
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
)


def after(asset: dg.AssetKey) -> dg.AutomationCondition:
    """Return the condition of a check of an automated asset: run it with every materialisation.

    An automated run has only those checks that have a condition. Without one, a blocking check is
    not evaluated, and `AFTER_PARENTS` waits for it.
    """
    return dg.AutomationCondition.eager().allow(dg.AssetSelection.assets(asset))


def repair_key(context: dg.SensorEvaluationContext, generation: int | None) -> str:
    """Return a run key that asks for a repair of a replica at most once in 15 minutes.

    A lasting fault then does not fill the queue.
    """
    slot = int(context.last_tick_completion_time or 0) // REPAIR_EVERY_S
    return f"repair-{generation}-{slot}"


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn an engine's error into the failure of the step, retried if it is transient.

    Raises:
        dg.Failure: The body raised a `PlatformError`; the text stays the same.
    """
    try:
        yield
    except PlatformError as error:
        raise dg.Failure(
            description=str(error), allow_retries=isinstance(error, TransientError)
        ) from error
