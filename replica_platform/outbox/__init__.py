"""The outbox: records that workers save locally and that arrive in Postgres once, in order.

A worker's `append` is durable when it returns; drains deliver later. Outside `delivery` nothing
imports the Postgres driver, and `Outbox` imports SQLite only. In the order of the story:

- `box`: `Outbox`, which a worker appends to; `group`: the commits of all its threads; `encoding`:
  records as JSON text; `joined`: records in the application's own transactions.
- `file`: the outbox file; `slots`: folders and writers' locks; `reserve`: kept disk space.
- `queue`: the rows that wait; `breaker`: when to try again; `inspect`: backlog and dead rows.
- `delivery`: everything that needs Postgres.
- `errors`, `reports`: what callers catch and get.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from replica_platform.outbox.box import Outbox
from replica_platform.outbox.errors import (
    BadMapping,
    DeliveryError,
    ForkedOutbox,
    NetworkFileSystem,
    NotAnOutbox,
    NotDurable,
    NotJoinable,
    NotStorable,
    OutboxBusy,
    OutboxClosed,
    OutboxDamaged,
    OutboxFull,
    RowRefused,
    SlotLocked,
    TargetRefused,
    TargetUnavailable,
)

if TYPE_CHECKING:
    from replica_platform.outbox.delivery.doctor import doctor
    from replica_platform.outbox.delivery.drain import drain
    from replica_platform.outbox.delivery.reconcile import reconcile, repair, verify
    from replica_platform.outbox.delivery.refill import refill
    from replica_platform.outbox.delivery.watch import watch
    from replica_platform.outbox.inspect import (
        backlog,
        conflicts,
        dead,
        dismiss_conflicts,
        replay,
        settle,
        status,
    )
    from replica_platform.outbox.reports import (
        Backlog,
        ConflictRow,
        DeadRow,
        DrainReport,
        FileBacklog,
        FileDrain,
        FileReconciliation,
        Finding,
        Reconciliation,
        Refill,
    )

# Loaded on first use, so that a worker loads neither the driver nor dataclasses.
_LAZY = {
    "Backlog": "reports",
    "ConflictRow": "reports",
    "DeadRow": "reports",
    "DrainReport": "reports",
    "FileBacklog": "reports",
    "FileDrain": "reports",
    "FileReconciliation": "reports",
    "Finding": "reports",
    "Reconciliation": "reports",
    "Refill": "reports",
    "backlog": "inspect",
    "conflicts": "inspect",
    "dead": "inspect",
    "dismiss_conflicts": "inspect",
    "doctor": "delivery.doctor",
    "drain": "delivery.drain",
    "reconcile": "delivery.reconcile",
    "refill": "delivery.refill",
    "repair": "delivery.reconcile",
    "replay": "inspect",
    "settle": "inspect",
    "status": "inspect",
    "verify": "delivery.reconcile",
    "watch": "delivery.watch",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("replica_platform"):
            raise
        raise ImportError(
            f"{name} needs {error.name}, which a worker's installation leaves out; where records "
            "are delivered, install replica-platform with all it needs."
        ) from error


__all__ = [
    "Backlog",
    "BadMapping",
    "ConflictRow",
    "DeadRow",
    "DeliveryError",
    "DrainReport",
    "FileBacklog",
    "FileDrain",
    "FileReconciliation",
    "Finding",
    "ForkedOutbox",
    "NetworkFileSystem",
    "NotAnOutbox",
    "NotDurable",
    "NotJoinable",
    "NotStorable",
    "Outbox",
    "OutboxBusy",
    "OutboxClosed",
    "OutboxDamaged",
    "OutboxFull",
    "Reconciliation",
    "Refill",
    "RowRefused",
    "SlotLocked",
    "TargetRefused",
    "TargetUnavailable",
    "backlog",
    "conflicts",
    "dead",
    "dismiss_conflicts",
    "doctor",
    "drain",
    "reconcile",
    "refill",
    "repair",
    "replay",
    "settle",
    "status",
    "verify",
    "watch",
]
