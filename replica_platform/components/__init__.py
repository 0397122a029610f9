"""Components for `defs.yaml`: tables to sync, outboxes to drain, purposes to publish, backups.

Each component builds its own assets, checks, schedules and sensors. What depends on the machine
(folders, databases, limits) reaches them through resources.
"""

from replica_platform.components.purpose_replicas import PurposeReplicas
from replica_platform.components.sqlite_backups import SqliteBackups
from replica_platform.components.worker_outboxes import WorkerOutboxes
from replica_platform.components.xmin_tables import XminTables

__all__ = ["PurposeReplicas", "SqliteBackups", "WorkerOutboxes", "XminTables"]
