"""Publishing a DuckDB master to readers that never wait and never see half a file.

`Master` is the one writer; `publish` (or `prepare`, then `release`) makes a generation of it;
`ReplicaReader` reads, and needs nothing beside duckdb; `status`, `verify` and `rollback` look
after the store.
"""

from replica_platform.replica.errors import ReplicaUnavailable
from replica_platform.replica.master import STORAGE_VERSION, Master
from replica_platform.replica.publish import prepare, publish
from replica_platform.replica.purpose.definition import (
    Part,
    Purpose,
    UnlistedColumns,
    load_purposes,
    unlisted_columns,
)
from replica_platform.replica.reader import ReaderStatus, ReplicaReader
from replica_platform.replica.remote.block_store import BlockStore, BlockStoreVerification, Pushed
from replica_platform.replica.repair import repair
from replica_platform.replica.status import (
    Reader,
    ReplicaStatus,
    Verification,
    rollback,
    status,
    verify,
)
from replica_platform.replica.store.candidate import Candidate, Publication
from replica_platform.replica.store.manifest import Manifest

__all__ = [
    "STORAGE_VERSION",
    "BlockStore",
    "BlockStoreVerification",
    "Candidate",
    "Manifest",
    "Master",
    "Part",
    "Publication",
    "Purpose",
    "Pushed",
    "Reader",
    "ReaderStatus",
    "ReplicaReader",
    "ReplicaStatus",
    "ReplicaUnavailable",
    "UnlistedColumns",
    "Verification",
    "load_purposes",
    "prepare",
    "publish",
    "repair",
    "rollback",
    "status",
    "unlisted_columns",
    "verify",
]
