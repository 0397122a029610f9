"""What runs for all folders of `defs/`: declarative automation, and the alerts.

Each folder has its own schedules and sensors, and so have the components.
"""

import time
from collections.abc import Sequence
from typing import Any

import dagster as dg

from replica_platform.app.alerts.deliver import deliver
from replica_platform.app.alerts.ledger import Ledger
from replica_platform.app.alerts.look import look
from replica_platform.app.alerts.receivers import LogReceiver
from replica_platform.app.entries.base import HOST_TAG
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
