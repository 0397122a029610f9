"""Pools, retries and freshness that assets of every pillar share."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import dagster as dg

from replica_platform.core.errors import PlatformError, TransientError

# DuckDB has one writer: whatever opens the master takes this pool, checks too.
MASTER_POOL = "master"
TARGET_POOL = "target"

TRANSIENT = dg.RetryPolicy(
    max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)

# They say that Dagster ran something; a check says how old the data is.
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


@contextmanager
def plain_failures() -> Iterator[None]:
    """An engine's error becomes the step's failure in its own words, retried if transient."""
    try:
        yield
    except PlatformError as error:
        raise dg.Failure(
            description=str(error), allow_retries=isinstance(error, TransientError)
        ) from error
