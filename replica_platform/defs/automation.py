"""What runs for all folders of `defs/`: declarative automation, and a log line for each failure.

Each folder has its own schedules and sensors, and so have the components.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

import dagster as dg
from dagster._core.scheduler.instigation import TickStatus

from replica_platform.app.entries.base import HOST_TAG
from replica_platform.app.runs import failure_cause, innermost_cause

# A tick has the time of its start, and may fail later.
LOOK_BACK_S = 900


@dg.run_failure_sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def failed_runs(context: dg.RunFailureSensorContext) -> None:
    """Log in one line of the daemon's log which run failed, at which step, and why."""
    causes = [
        f"{event.step_key}: {failure_cause(event)}" for event in context.get_step_failure_events()
    ]
    run_id = context.dagster_run.run_id[:8]
    context.log.error(one_line(f"Run {run_id} failed at {'; '.join(causes) or _start(context)}"))


def _start(context: dg.RunFailureSensorContext) -> str:
    """Return why a run failed before or between its steps."""
    event = context.failure_event
    error = event.job_failure_data.error
    return f"its start: {innermost_cause(error) if error else event.message}"


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Logs in one line which schedule or sensor failed at a tick, and why.",
)
def failed_ticks(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Log each failed tick once; a failed tick starts no run, so that `failed_runs` misses it."""
    since = time.time() - LOOK_BACK_S
    logged = set(json.loads(context.cursor or "[]"))
    failed = {
        str(tick.tick_id): tick
        for state in context.instance.all_instigator_state()
        for tick in context.instance.get_ticks(
            state.instigator_origin_id,
            state.selector_id,
            after=since,
            statuses=[TickStatus.FAILURE],
        )
    }
    for tick_id in failed.keys() - logged:
        tick = failed[tick_id]
        context.log.error(
            one_line(f"The tick of {tick.instigator_name} failed: {innermost_cause(tick.error)}")
        )
    return dg.SensorResult(
        skip_reason="Every failed tick is in the log.", cursor=json.dumps(sorted(failed))
    )


def one_line(text: str) -> str:
    """Return a text without line breaks, since a line of a log is one message."""
    return " ".join(text.split())


def _automation(name: str, target: dg.AssetSelection) -> dg.AutomationConditionSensorDefinition:
    return dg.AutomationConditionSensorDefinition(
        name,
        target=target,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Publishes when a table of the master changed and its blocking checks passed.",
    )


declarative_automation = _automation("declarative_automation", dg.AssetSelection.all())


def by_host(sensors: Sequence[Any], hosts: Sequence[str]) -> list[Any]:
    """Return sensors with an automation sensor for each host instead of one for all assets.

    One sensor joins what it asks for into one run, and the assets of a run live on one host.

    Args:
        sensors: The sensors of all folders.
        hosts: The hosts that assets name; without any, the sensors stay as they are.
    """
    name = declarative_automation.name
    if not hosts or name not in {sensor.name for sensor in sensors}:
        return list(sensors)
    on_host = {host: dg.AssetSelection.tag(HOST_TAG, host) for host in hosts}
    elsewhere: dg.AssetSelection = dg.AssetSelection.all()
    for selection in on_host.values():
        elsewhere = elsewhere - selection
    return [
        *(sensor for sensor in sensors if sensor.name != name),
        _automation(name, elsewhere),
        *(_automation(f"{name}_{host}", selection) for host, selection in on_host.items()),
    ]
