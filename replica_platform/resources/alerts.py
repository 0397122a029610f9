"""The receivers of alerts as a Dagster resource: their secrets are hidden from the Dagster UI."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from replica_platform.app.alerts.receivers import (
    MailReceiver,
    Receiver,
    WebhookReceiver,
    mail_server,
)
from replica_platform.app.settings import Settings, addresses_of


@dataclass(frozen=True)
class AlertReceivers:
    """Who is told beside the log.

    A plain object instead of a `ConfigurableResource`: Dagster shows and stores the config of
    those. Functions ask for it as `dg.ResourceParam[AlertReceivers]`.

    Attributes:
        ui_url: The address of the Dagster UI.
        others: The webhook and the mail addresses.
    """

    ui_url: str
    others: Sequence[Receiver] = field(default=(), repr=False)


def alert_receivers(settings: Settings) -> AlertReceivers:
    """Return the receivers of some settings."""
    others: list[Receiver] = []
    if settings.alert_webhook is not None:
        others.append(WebhookReceiver(settings.alert_webhook.get_secret_value()))
    if settings.alert_mail_server is not None:
        password = settings.alert_mail_password
        addresses = addresses_of(settings.alert_mail_to)
        others += [
            MailReceiver(
                one,
                settings.alert_mail_from or addresses[0],
                mail_server(settings.alert_mail_server),
                password.get_secret_value() if password else None,
            )
            for one in addresses
        ]
    return AlertReceivers(settings.alert_ui_url, tuple(others))
