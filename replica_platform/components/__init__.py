"""What is configured by YAML: tables to sync, parts of the master to publish, files to back up."""

from replica_platform.components.purpose_replicas import PurposeReplicas
from replica_platform.components.sqlite_backups import SqliteBackups
from replica_platform.components.xmin_tables import XminTables

__all__ = ["PurposeReplicas", "SqliteBackups", "XminTables"]
