"""The outbox: a record is safe once `append` returns, and is delivered whatever dies.

`Outbox` is the worker's side and loads SQLite only; everything that needs Postgres is loaded
when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from replica_platform.outbox.box import Outbox

if TYPE_CHECKING:
    from replica_platform.outbox.delivery.doctor import doctor
    from replica_platform.outbox.delivery.drain import drain
    from replica_platform.outbox.delivery.inspect import backlog, conflicts, dead, replay, settle
    from replica_platform.outbox.delivery.reconcile import reconcile
    from replica_platform.outbox.delivery.watch import watch
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
    )

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
    "backlog": "delivery.inspect",
    "conflicts": "delivery.inspect",
    "dead": "delivery.inspect",
    "doctor": "delivery.doctor",
    "drain": "delivery.drain",
    "reconcile": "delivery.reconcile",
    "replay": "delivery.inspect",
    "settle": "delivery.inspect",
    "watch": "delivery.watch",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


__all__ = [
    "Backlog",
    "ConflictRow",
    "DeadRow",
    "DrainReport",
    "FileBacklog",
    "FileDrain",
    "FileReconciliation",
    "Finding",
    "Outbox",
    "Reconciliation",
    "backlog",
    "conflicts",
    "dead",
    "doctor",
    "drain",
    "reconcile",
    "replay",
    "settle",
    "watch",
]
