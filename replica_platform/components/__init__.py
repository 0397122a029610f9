"""What is configured by YAML: tables to sync, SQLite files to back up."""

from replica_platform.components.sqlite_backups import SqliteBackups
from replica_platform.components.xmin_tables import XminTables

__all__ = ["SqliteBackups", "XminTables"]
