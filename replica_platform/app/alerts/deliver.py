"""The delivery of what waits: to each receiver in order, and again at the next look."""

import time
from collections.abc import Sequence

from replica_platform.app.alerts.ledger import Ledger
from replica_platform.app.alerts.receivers import NotDelivered, Receiver

LINES = 20  # of one message
# A receiver that does not answer costs its time limit; the others wait for the next look then.
BUDGET_S = 20.0


def deliver(ledger: Ledger, receivers: Sequence[Receiver]) -> list[str]:
    """Send what waits, and take what was sent out of the ledger.

    Args:
        ledger: The ledger.
        receivers: The receivers.

    Returns:
        A sentence for each receiver that has not taken everything.
    """
    until = time.monotonic() + BUDGET_S
    problems = []
    for receiver in receivers:
        waiting = ledger.waiting.get(receiver.name, [])
        try:
            while waiting and time.monotonic() < until:
                receiver.send(waiting[:LINES])
                del waiting[:LINES]
        except NotDelivered as error:
            problems.append(f"{error} {len(waiting)} messages wait, and are sent again.")
    return problems
