"""Pools, retries, freshness, automation and errors: the rules that assets of all pillars share."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition as AssetJob,
)

from replica_platform.core.errors import PlatformError, TransientError

# The tags of a run that no person started.
AUTOMATIC = {"dagster/schedule_name", "dagster/sensor_name", "dagster/from_automation_condition"}
# DuckDB has one writer: everything that opens a master takes its pool, checks included.
MASTER_POOL = "master"
REPAIR_EVERY_S = 900

# Of a run that waits or runs.
UNFINISHED = [
    *(dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED),
    *(dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED),
]

TRANSIENT = dg.RetryPolicy(
    max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)

# Freshness policies tell when Dagster last materialised an asset; the age of its data is an asset
# check. Four days: from a Thursday's session to the next one after a long weekend.
EACH_SESSION = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(days=4, hours=3), warn_window=timedelta(days=3, hours=3)
)


def reported_every(report_s: int, fresh_within_s: int) -> dg.FreshnessPolicy:
    """Return the freshness of an asset that a run reports every `report_s` seconds, or on a change.

    Args:
        report_s: The seconds after which it is reported although it did not change.
        fresh_within_s: The delay in seconds above which it is late; twice of it is a failure.
    """
    return dg.FreshnessPolicy.time_window(
        fail_window=timedelta(seconds=report_s + 2 * fresh_within_s),
        warn_window=timedelta(seconds=report_s + fresh_within_s),
    )


def fresh_within(seconds: int) -> dg.FreshnessPolicy:
    """Return the freshness of an asset that is late after `seconds`, and has failed after twice."""
    return reported_every(0, seconds)


# The tag of tables with a partition for each day that can be read again.
BY_DAY = {"replica_platform/partitions": "days"}

# What `eager` does not take over: a parent that was updated after the asset in the same tick, or
# while the asset was made from an earlier state of it.
_PARENT_UPDATED = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.newly_updated())
_MISSED_BY_EAGER = (
    _PARENT_UPDATED.since(dg.AutomationCondition.newly_updated())
    & _PARENT_UPDATED.since(dg.AutomationCondition.newly_requested())
) | (dg.AutomationCondition.any_deps_updated() & dg.AutomationCondition.in_progress()).since(
    dg.AutomationCondition.newly_requested()
)

# Publish when a parent changed and its blocking checks passed. What is missing of a table by days
# does not count: a replica shows the days that there are.
AFTER_PARENTS = (
    (
        (
            dg.AutomationCondition.newly_missing() | dg.AutomationCondition.any_deps_updated()
        ).since_last_handled()
        | _MISSED_BY_EAGER
    )
    & ~dg.AutomationCondition.any_deps_missing().ignore(
        dg.AssetSelection.tag(*next(iter(BY_DAY.items())))
    )
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
)


def named_job(name: str, selection: dg.AssetSelection, description: str) -> AssetJob:
    """Return the job of a schedule or sensor; without one, runs and timeline show no name."""
    return dg.define_asset_job(name, selection=selection, description=description)


def waits_on_host(
    context: dg.ScheduleEvaluationContext, job: str, host: str | None
) -> dg.SkipReason | None:
    """Return why a schedule asks for no run of its host: an earlier one still waits or runs.

    A host that is away would find all runs of its absence in its queue.

    Args:
        context: The context of the tick.
        job: The job of the schedule.
        host: The host; None where none is named, and every tick asks for its run.
    """
    if host is None:
        return None
    waiting = context.instance.get_run_records(
        dg.RunsFilter(job_name=job, statuses=UNFINISHED), limit=1
    )
    if not waiting:
        return None
    return dg.SkipReason(f"An earlier run of {job} still waits for {host}, or runs there.")


def after(asset: dg.AssetKey) -> dg.AutomationCondition:
    """Return the condition of a check of an automated asset: run it with every materialisation.

    An automated run has only those checks that have a condition. Without one, a blocking check is
    not evaluated, and `AFTER_PARENTS` waits for it.
    """
    return dg.AutomationCondition.eager().allow(dg.AssetSelection.assets(asset))


def by_a_person(run: dg.DagsterRun) -> bool:
    """Return whether a person started a run, not a schedule, a sensor or an automation."""
    return not AUTOMATIC & run.tags.keys()


def repair_key(context: dg.SensorEvaluationContext, damaged: object) -> str:
    """Return a run key that asks for a repair at most once in 15 minutes.

    A lasting fault then does not fill the queue.

    Args:
        context: The context of the sensor.
        damaged: What tells one damage from the next, such as the generation.
    """
    # A first tick has no earlier one.
    slot = int(context.last_tick_completion_time or time.time()) // REPAIR_EVERY_S
    return f"repair-{damaged}-{slot}"


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
