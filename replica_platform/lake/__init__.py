"""A lake as a master that many processes write at once: DuckLake, with its catalog in Postgres.

Experimental: DuckLake has open defects in concurrent commits, see docs/lake.md.

The story:

definition    where a lake is, and its secrets
session       DuckDB with the lake attached; `extensions` come from installed wheels
write         a function in a transaction, tried again after a conflict, committed once
export        the newest snapshot as a DuckDB file, for the replica to publish
status        snapshots and files, and what is missing
maintain      small files merged, old snapshots and files removed

Below them `catalog` (the catalog's tables, read past DuckDB) and `files` (what is in the place of
the data). Dagster, the command line and other engines are not imported.

The functions `export`, `status` and `maintain` hide the modules of those names: a module's other
names are imported `from` it.
"""

from replica_platform.lake.catalog import Snapshot
from replica_platform.lake.definition import Lake
from replica_platform.lake.errors import (
    ExtensionsMissing,
    LakeConflict,
    LakeMissing,
    LakeUnavailable,
    SnapshotGone,
    WrongLake,
)
from replica_platform.lake.export import AS_OF, Export, Exported, export, exported, pending
from replica_platform.lake.maintain import KEEP_S, Maintenance, maintain
from replica_platform.lake.session import opened as read_lake
from replica_platform.lake.status import ORPHAN_AGE_S, LakeStatus, status
from replica_platform.lake.write import Commit, LakeWriter

__all__ = [
    "AS_OF",
    "KEEP_S",
    "ORPHAN_AGE_S",
    "Commit",
    "Export",
    "Exported",
    "ExtensionsMissing",
    "Lake",
    "LakeConflict",
    "LakeMissing",
    "LakeStatus",
    "LakeUnavailable",
    "LakeWriter",
    "Maintenance",
    "Snapshot",
    "SnapshotGone",
    "WrongLake",
    "export",
    "exported",
    "maintain",
    "pending",
    "read_lake",
    "status",
]
