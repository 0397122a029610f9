"""What a `defs.yaml` may say: the attributes of each component, with defaults, without Dagster.

The components of `components` inherit them, so that an attribute and its check are written once;
`configured` reads the files with them, so that `replica status` needs no Dagster.
"""

from replica_platform.app.entries.base import Entry, WrongEntry
from replica_platform.app.entries.lakes import LakeMasterEntry
from replica_platform.app.entries.outboxes import WorkerOutboxesEntry
from replica_platform.app.entries.replicas import (
    DuckDBReplicaEntry,
    PurposeReplicasEntry,
    RegionEntry,
)
from replica_platform.app.entries.sqlite_files import FileEntry, SqliteBackupsEntry
from replica_platform.app.entries.xmin_tables import TableEntry, XminTablesEntry

__all__ = [
    "DuckDBReplicaEntry",
    "Entry",
    "FileEntry",
    "LakeMasterEntry",
    "PurposeReplicasEntry",
    "RegionEntry",
    "SqliteBackupsEntry",
    "TableEntry",
    "WorkerOutboxesEntry",
    "WrongEntry",
    "XminTablesEntry",
]
