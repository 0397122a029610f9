"""The results of the engine's functions: frozen, fit for JSON, each with a sentence for people.

- `drained`: what a drain did.
- `waiting`: what waits, what is dead or in conflict.
- `compared`: what the target has of what was delivered.
- `findings`: what `doctor` found.
- `files`: a number of files in words.
"""

from replica_platform.outbox.reports.compared import FileReconciliation, Reconciliation, Refill
from replica_platform.outbox.reports.drained import DrainReport, FileDrain
from replica_platform.outbox.reports.findings import Finding
from replica_platform.outbox.reports.waiting import Backlog, ConflictRow, DeadRow, FileBacklog

__all__ = [
    "Backlog",
    "ConflictRow",
    "DeadRow",
    "DrainReport",
    "FileBacklog",
    "FileDrain",
    "FileReconciliation",
    "Finding",
    "Reconciliation",
    "Refill",
]
