"""What is configured by YAML: tables to sync, outboxes to drain, parts to publish, backups."""

from replica_platform.components.purpose_replicas import PurposeReplicas
from replica_platform.components.sqlite_backups import SqliteBackups
from replica_platform.components.worker_outboxes import WorkerOutboxes
from replica_platform.components.xmin_tables import XminTables

__all__ = ["PurposeReplicas", "SqliteBackups", "WorkerOutboxes", "XminTables"]
