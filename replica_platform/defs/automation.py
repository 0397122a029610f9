"""What runs for all folders of `defs/`: declarative automation, and the log line of a failed run.

Each folder has its own schedules and sensors, and so have the components.
"""

import dagster as dg


@dg.run_failure_sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
)
def failed_runs(context: dg.RunFailureSensorContext) -> None:
    """Log in one line of the daemon's log which run failed, at which step, and why."""
    steps = [event.step_key for event in context.get_step_failure_events()]
    context.log.error(
        "Run %s failed at %s: %s",
        context.dagster_run.run_id[:8],
        ", ".join(str(step) for step in steps) or "its start",
        context.failure_event.message,
    )


declarative_automation = dg.AutomationConditionSensorDefinition(
    "declarative_automation",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Publishes when a table of the master changed and its blocking checks passed.",
)
