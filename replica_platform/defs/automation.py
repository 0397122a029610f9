"""What runs for all folders of `defs/`: declarative automation, and the alerts.

Each folder has its own schedules and sensors, and so have the components.
"""

import time

import dagster as dg

from replica_platform.app.alerts.deliver import deliver
from replica_platform.app.alerts.ledger import Ledger
from replica_platform.app.alerts.look import look
from replica_platform.app.alerts.receivers import LogReceiver
from replica_platform.resources.alerts import AlertReceivers


# A sensor that starts no run: it also tells of what keeps runs from starting.
@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells once of each failed run, failing tick, red check and overdue asset, and "
    "once more when it has recovered: to the log, to a webhook, by mail.",
)
def alerts(
    context: dg.SensorEvaluationContext, alert_receivers: dg.ResourceParam[AlertReceivers]
) -> dg.SensorResult:
    """Look for troubles, and tell what is new or over."""
    if context.repository_def is None:
        raise dg.DagsterInvariantViolationError("A sensor without definitions cannot look.")
    origin = context.code_location_origin
    ledger = Ledger.read(context.cursor, alert_receivers.ui_url)
    found = look(
        context.instance, context.repository_def, ledger, origin.location_name if origin else None
    )
    receivers = [LogReceiver(context.log), *alert_receivers.others]
    ledger.note(found, [one.name for one in receivers], time.time())
    for problem in deliver(ledger, receivers):
        context.log.warning(problem)
    return dg.SensorResult(
        skip_reason=f"{len(ledger.told)} troubles are told and last.", cursor=ledger.cursor()
    )


declarative_automation = dg.AutomationConditionSensorDefinition(
    "declarative_automation",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Publishes when a table of the master changed and its blocking checks passed.",
)
