"""Components for `defs.yaml`: tables to sync, outboxes, replicas, purposes, lakes, backups.

Each component builds its own assets, checks, schedules and sensors. What its entries may say is in
`app.entries`; what depends on the machine (folders, databases, limits) reaches the assets through
resources.
"""

from replica_platform.components.duckdb_replica import DuckDBReplica
from replica_platform.components.lake_master import LakeMaster
from replica_platform.components.purpose_replicas import PurposeReplicas
from replica_platform.components.sqlite_backups import SqliteBackups
from replica_platform.components.worker_outboxes import WorkerOutboxes
from replica_platform.components.xmin_tables import XminTables

__all__ = [
    "DuckDBReplica",
    "LakeMaster",
    "PurposeReplicas",
    "SqliteBackups",
    "WorkerOutboxes",
    "XminTables",
]
