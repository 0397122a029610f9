"""The troubles that there are now, in Dagster's database: runs, ticks, checks and freshness.

Each is found by its newest state, not by events: what a later run, tick or evaluation made good
before the look is no trouble.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from urllib.parse import quote

import dagster as dg
import sqlalchemy as sa
from dagster._core import errors as dg_errors
from dagster._core.definitions.freshness import FreshnessState
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    TickStatus,
)
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)
from dagster._core.storage.dagster_run import RunRecord
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Evaluations
from dagster._core.storage.tags import PARTITION_NAME_TAG, WILL_RETRY_TAG

from replica_platform.app.alerts.ledger import Ledger
from replica_platform.app.alerts.trouble import Trouble
from replica_platform.app.housekeeping import sql_storage
from replica_platform.app.runs import failure_cause, innermost_cause
from replica_platform.core.reports import format_age
from replica_platform.pictures import sentence_of

# The first look goes back so far; later ones to the look before, and a little further, since a
# run's end may be written after its time.
FIRST_LOOK_S = 86_400
OVERLAP_S = 120
# A warning of a check, such as a table that the next sync brings into step, must last so long.
WARNING_LASTS_S = 900
MOST_RUNS = 1000

_ENDED = (TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE)
_SUCCEEDED = dg.DagsterRunStatus.SUCCESS
_FAILED = dg.DagsterRunStatus.FAILURE
_HIDDEN_REPOSITORY = "__repository__"


def look(
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    ledger: Ledger,
    location: str | None = None,
) -> list[Trouble]:
    """Return the troubles that there are now.

    Args:
        instance: Dagster's instance.
        repository: The definitions, whose checks and assets are looked at.
        ledger: What lasts since earlier looks.
        location: The name of the code location of the definitions. A schedule or sensor of it that
            is no longer defined is left out.
    """
    return [
        *_failed_runs(instance, ledger),
        *_failing_ticks(instance, repository, location),
        *_red_checks(instance, repository, ledger),
        *_overdue(instance, repository),
    ]


def _failed_runs(instance: dg.DagsterInstance, ledger: Ledger) -> Iterator[Trouble]:
    """Yield the newest failed run of each job and partition that nothing has made good since."""
    since = ledger.looked_at - OVERLAP_S if ledger.looked_at else time.time() - FIRST_LOOK_S
    recent = instance.get_run_records(
        dg.RunsFilter(statuses=[_FAILED], updated_after=datetime.fromtimestamp(since, UTC)),
        limit=MOST_RUNS,
    )
    lasting = [one.run_id for one in ledger.lasting.values() if one.run_id]
    known = instance.get_run_records(dg.RunsFilter(run_ids=lasting)) if lasting else []
    newest: dict[str, RunRecord] = {}
    for record in sorted([*known, *recent], key=_end):
        newest[_key(record)] = record
    for key, record in newest.items():
        failures = _step_failures(instance, record)
        told_as_checks = failures and all(map(_is_red_check, failures))
        if not told_as_checks and not _is_made_good(instance, record):
            yield _failed_run(instance, key, record)


def _step_failures(instance: dg.DagsterInstance, record: RunRecord) -> list[dg.DagsterEvent]:
    run_id, kind = record.dagster_run.run_id, dg.DagsterEventType.STEP_FAILURE
    found = instance.get_records_for_run(run_id, of_type=kind).records
    return [one.event_log_entry.get_dagster_event() for one in found]


def _is_red_check(event: dg.DagsterEvent) -> bool:
    """Whether a step failed because a blocking check is red, which is told by itself."""
    error = event.step_failure_data.error
    return error is not None and error.cls_name == dg_errors.DagsterAssetCheckFailedError.__name__


def _end(record: RunRecord) -> float:
    return record.end_time or record.update_timestamp.timestamp()


def _key(record: RunRecord) -> str:
    """Return what a run is told under: its job, its partition, and its assets if they are chosen.

    The runs of a schedule have the same ones, so that they are one trouble.
    """
    run = record.dagster_run
    parts = [run.job_name, run.tags.get(PARTITION_NAME_TAG, ""), *_chosen(record)]
    return f"run:{':'.join(parts)}"


def _chosen(record: RunRecord) -> list[str]:
    return sorted(key.to_user_string() for key in record.dagster_run.asset_selection or ())


def _is_made_good(instance: dg.DagsterInstance, record: RunRecord) -> bool:
    """Whether it is retried, a later run of the same succeeded, or its assets arrived since."""
    run = record.dagster_run
    if run.tags.get(WILL_RETRY_TAG) == "true":
        return True  # the retry says how it ends
    partition = run.tags.get(PARTITION_NAME_TAG)
    later = instance.get_run_records(
        dg.RunsFilter(
            job_name=run.job_name,
            statuses=[_SUCCEEDED],
            tags={PARTITION_NAME_TAG: partition} if partition else {},
            updated_after=datetime.fromtimestamp(_end(record), UTC),
        ),
        limit=MOST_RUNS,
    )
    if any(_key(one) == _key(record) and _end(one) > _end(record) for one in later):
        return True
    return not partition and _assets_arrived(instance, record)


def _assets_arrived(instance: dg.DagsterInstance, record: RunRecord) -> bool:
    """Whether everything that the run should have materialised was materialised after it."""
    planned, made = (
        {
            one.event_log_entry.asset_materialization.asset_key
            if one.event_log_entry.asset_materialization
            else one.event_log_entry.get_dagster_event().asset_key
            for one in instance.get_records_for_run(record.dagster_run.run_id, of_type=kind).records
        }
        for kind in (
            dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
            dg.DagsterEventType.ASSET_MATERIALIZATION,
        )
    )
    missing = {key for key in (planned - made or planned) if key is not None}
    if not missing:
        return False
    found = instance.get_asset_records(list(missing))
    arrived = {
        one.asset_entry.asset_key
        for one in found
        if (last := one.asset_entry.last_materialization) and last.timestamp > _end(record)
    }
    return arrived == missing


def _failed_run(instance: dg.DagsterInstance, key: str, record: RunRecord) -> Trouble:
    run = record.dagster_run
    partition = run.tags.get(PARTITION_NAME_TAG)
    chosen = ", ".join(_chosen(record)[:3])
    name = f"{run.job_name} ({partition or chosen})" if partition or chosen else run.job_name
    return Trouble(
        key=key,
        what=f"Run {run.run_id[:8]} of {name} has failed",
        why=f"{_cause(instance, record)}. Correct the cause, and launch it again from its "
        "page; the next run of a schedule that succeeds ends this alert too.",
        since=_end(record),
        page=f"/runs/{run.run_id}",
        run_id=run.run_id,
    )


def _cause(instance: dg.DagsterInstance, record: RunRecord) -> str:
    """Return why a run failed: the cause of each failed step, else why it could not go on."""
    run_id = record.dagster_run.run_id
    if events := _step_failures(instance, record):
        return "; ".join(f"{event.step_key}: {_plain(failure_cause(event))}" for event in events)
    ended = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
    for one in ended:
        event = one.event_log_entry.get_dagster_event()
        error = event.job_failure_data.error
        return f"its start: {_plain(innermost_cause(error) if error else event.message or '')}"
    return "Dagster has kept no cause"


def _plain(sentence: str) -> str:
    """Return a cause without the full stop that the sentence around it has."""
    return sentence.strip().rstrip(".")


def _failing_ticks(
    instance: dg.DagsterInstance, repository: dg.RepositoryDefinition, location: str | None
) -> Iterator[Trouble]:
    """Yield each schedule and sensor that is on and whose newest tick failed."""
    defined = {one.name for one in repository.schedule_defs}
    defined |= {one.name for one in repository.sensor_defs}
    for state in instance.all_instigator_state():
        origin = state.origin.repository_origin
        of_here = origin.code_location_origin.location_name == location
        if state.status is InstigatorStatus.STOPPED or (of_here and state.name not in defined):
            continue
        ticks = instance.get_ticks(
            state.instigator_origin_id, state.selector_id, limit=1, statuses=list(_ENDED)
        )
        for tick in ticks:
            if tick.status is TickStatus.FAILURE:
                yield Trouble(
                    key=f"tick:{origin.code_location_origin.location_name}:{state.name}",
                    what=f"{_kind(state).capitalize()} {state.name} fails",
                    why=f"{_plain(innermost_cause(tick.error))}. Correct the cause; the next tick "
                    "that succeeds ends this alert.",
                    since=tick.timestamp,
                    page=f"/locations/{_repository(origin)}/{_kind(state)}s/{quote(state.name)}",
                )


def _kind(state: InstigatorState) -> str:
    return "schedule" if state.instigator_type is InstigatorType.SCHEDULE else "sensor"


def _repository(origin: RemoteRepositoryOrigin) -> str:
    """Return a repository as the UI's addresses name it."""
    location, name = origin.code_location_origin.location_name, origin.repository_name
    return quote(location if name == _HIDDEN_REPOSITORY else f"{name}@{location}")


def _red_checks(
    instance: dg.DagsterInstance, repository: dg.RepositoryDefinition, ledger: Ledger
) -> Iterator[Trouble]:
    """Yield each check whose newest evaluation did not pass; one that runs now stays as it was."""
    keys = list(_not_passed(instance) & repository.asset_graph.asset_check_keys)
    newest: Mapping[dg.AssetCheckKey, AssetCheckExecutionRecord] = (
        instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    )
    for check, record in newest.items():
        key = f"check:{check.asset_key.to_user_string()}:{check.name}"
        if record.status is AssetCheckExecutionRecordStatus.PLANNED:
            if key in ledger.lasting:
                yield ledger.lasting[key]
        elif record.status is AssetCheckExecutionRecordStatus.FAILED:
            yield _red_check(key, check, record)


def _not_passed(instance: dg.DagsterInstance) -> set[dg.AssetCheckKey]:
    """Return the checks whose newest evaluation has not passed, without reading its event.

    To read those of thousands of checks that passed would cost a second of each look.
    """
    newest = sa.select(sa.func.max(Evaluations.c.id)).group_by(
        Evaluations.c.asset_key, Evaluations.c.check_name
    )
    passed = AssetCheckExecutionRecordStatus.SUCCEEDED.value
    unsettled = sa.select(Evaluations.c.asset_key, Evaluations.c.check_name).where(
        Evaluations.c.id.in_(newest), Evaluations.c.execution_status != passed
    )
    with sql_storage(instance).index_connection() as connection:
        found = connection.execute(unsettled).fetchall()
    keys = ((dg.AssetKey.from_db_string(key), name) for key, name in found)
    return {dg.AssetCheckKey(key, name) for key, name in keys if key is not None}


def _red_check(key: str, check: dg.AssetCheckKey, record: AssetCheckExecutionRecord) -> Trouble:
    event = record.event.get_dagster_event() if record.event else None
    evaluation = event.asset_check_evaluation_data if event else None
    warning = evaluation is not None and evaluation.severity is dg.AssetCheckSeverity.WARN
    sentence = _plain(sentence_of(evaluation.description if evaluation else None))
    return Trouble(
        key=key,
        what=f"Check {check.name} of {check.asset_key.to_user_string()} "
        f"{'warns' if warning else 'is red'}",
        why=f"{sentence or 'it gave no reason'}. Its page shows what was found; materialise the "
        "asset or run the check again once that is corrected.",
        since=record.event.timestamp if record.event else record.create_timestamp,
        page=f"{_asset_page(check.asset_key)}?view=checks",
        patience_s=WARNING_LASTS_S if warning else 0.0,
    )


def _overdue(
    instance: dg.DagsterInstance, repository: dg.RepositoryDefinition
) -> Iterator[Trouble]:
    """Yield each asset that Dagster's daemon finds late by the asset's freshness policy."""
    keys = list(repository.asset_graph.materializable_asset_keys)
    states = instance.get_freshness_state_records(keys)
    late = [
        one for one in states.values()
        if one.freshness_state in (FreshnessState.WARN, FreshnessState.FAIL)
    ]  # fmt: skip
    ages = _ages(instance, [one.entity_key for one in late])
    for one in late:
        name = one.entity_key.to_user_string()
        yield Trouble(
            key=f"freshness:{name}",
            what=f"{name} is overdue",
            why=f"it was last materialised {format_age(ages.get(one.entity_key))} before this "
            "look, which is longer than its freshness policy allows. See whether its schedule or "
            "sensor is on and its last run succeeded, or materialise it.",
            since=one.updated_at.timestamp(),
            page=f"{_asset_page(one.entity_key)}?view=overview",
        )


def _ages(instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey]) -> dict[dg.AssetKey, float]:
    records = instance.get_asset_records(list(keys)) if keys else []
    return {
        one.asset_entry.asset_key: time.time() - last.timestamp
        for one in records
        if (last := one.asset_entry.last_materialization)
    }


def _asset_page(key: dg.AssetKey) -> str:
    return "/assets/" + "/".join(quote(part, safe="") for part in key.path)
