"""Publishing a DuckDB master to readers that never wait and never see half a file.

The story:

master        the one writable database
publish       a new generation; `options` are its arguments, `copy_master` copies the bytes
reader        an answer to every query, whatever happens to the store
status        the state of a store, and `verify` with every byte
repair        repair what is damaged, or roll back
scrub         read all bytes again in time, and repair
diff          what differs between two generations, see `compare`
lineage       whether the master is still in the state that was published

Below it, each folder imports only from those before it: `copy` (bytes of files), `store` (the
folder on disk), `serving` (one attached generation), `compare` (two of them), then `master`,
`purpose` (masked parts of the master), `remote` (blocks elsewhere). Dagster, the command line and
other engines are not imported.

The functions `publish`, `status`, `scrub` and `repair` hide the modules of those names: a module's
other names are imported `from` it.
"""

from typing import TYPE_CHECKING

from replica_platform.blocks.errors import BlockMissing, BlockStoreDamaged, BlockStoreUnavailable
from replica_platform.core.faces import load_late
from replica_platform.replica.errors import (
    CandidateDamaged,
    CandidateGone,
    GenerationDamaged,
    MasterBusy,
    MasterChanging,
    MasterDamaged,
    MasterDenied,
    MasterEncrypted,
    MasterMissing,
    MasterOpenHere,
    NothingPublished,
    PointerMoved,
    PurposeWrong,
    ReplicaUnavailable,
    RuleWrong,
    StoreBusy,
    StoreDenied,
    StoreFull,
    TableUnknown,
    WrongLineage,
    WrongStore,
)
from replica_platform.replica.serving.reader_status import ReaderStatus
from replica_platform.replica.status import (
    GenerationVerification,
    Reader,
    ReplicaStatus,
    status,
    verify,
)
from replica_platform.replica.store.manifest import Manifest

if TYPE_CHECKING:
    from replica_platform.replica.compare.diff import diff
    from replica_platform.replica.compare.reports import GenerationDiff, RowChange, TableDiff
    from replica_platform.replica.master import STORAGE_VERSION, Master
    from replica_platform.replica.publish import prepare, publish
    from replica_platform.replica.purpose.columns import UnlistedColumns, unlisted_columns
    from replica_platform.replica.purpose.definition import Part, Purpose, load_purposes
    from replica_platform.replica.reader import ReplicaReader
    from replica_platform.replica.remote.block_store import BlockStore
    from replica_platform.replica.remote.reports import BlockStoreVerification, Pruned, Pushed
    from replica_platform.replica.repair import repair, rollback
    from replica_platform.replica.scrub import Scrub, scrub
    from replica_platform.replica.serving.audit import (
        BrokenRule,
        audit,
        broken_rules,
        data_as_of,
    )
    from replica_platform.replica.serving.columns import PublishedColumn, published_columns
    from replica_platform.replica.serving.connect import connect
    from replica_platform.replica.store.candidate import Candidate, Publication

# Loaded on first use: a status needs none of it.
load_late(
    __name__,
    {
        "BlockStore": "remote.block_store",
        "BlockStoreVerification": "remote.reports",
        "BrokenRule": "serving.audit",
        "Candidate": "store.candidate",
        "GenerationDiff": "compare.reports",
        "Master": "master",
        "Part": "purpose.definition",
        "Pruned": "remote.reports",
        "Publication": "store.candidate",
        "PublishedColumn": "serving.columns",
        "Purpose": "purpose.definition",
        "Pushed": "remote.reports",
        "ReplicaReader": "reader",
        "RowChange": "compare.reports",
        "STORAGE_VERSION": "master",
        "Scrub": "scrub",
        "TableDiff": "compare.reports",
        "UnlistedColumns": "purpose.columns",
        "audit": "serving.audit",
        "broken_rules": "serving.audit",
        "connect": "serving.connect",
        "data_as_of": "serving.audit",
        "diff": "compare.diff",
        "load_purposes": "purpose.definition",
        "prepare": "publish",
        "publish": "publish",
        "published_columns": "serving.columns",
        "repair": "repair",
        "rollback": "repair",
        "scrub": "scrub",
        "unlisted_columns": "purpose.columns",
    },
)

# The former name.
Verification = GenerationVerification

__all__ = [
    "STORAGE_VERSION",
    "BlockMissing",
    "BlockStore",
    "BlockStoreDamaged",
    "BlockStoreUnavailable",
    "BlockStoreVerification",
    "BrokenRule",
    "Candidate",
    "CandidateDamaged",
    "CandidateGone",
    "GenerationDamaged",
    "GenerationDiff",
    "GenerationVerification",
    "Manifest",
    "Master",
    "MasterBusy",
    "MasterChanging",
    "MasterDamaged",
    "MasterDenied",
    "MasterEncrypted",
    "MasterMissing",
    "MasterOpenHere",
    "NothingPublished",
    "Part",
    "PointerMoved",
    "Pruned",
    "Publication",
    "PublishedColumn",
    "Purpose",
    "PurposeWrong",
    "Pushed",
    "Reader",
    "ReaderStatus",
    "ReplicaReader",
    "ReplicaStatus",
    "ReplicaUnavailable",
    "RowChange",
    "RuleWrong",
    "Scrub",
    "StoreBusy",
    "StoreDenied",
    "StoreFull",
    "TableDiff",
    "TableUnknown",
    "UnlistedColumns",
    "Verification",
    "WrongLineage",
    "WrongStore",
    "audit",
    "broken_rules",
    "connect",
    "data_as_of",
    "diff",
    "load_purposes",
    "prepare",
    "publish",
    "published_columns",
    "repair",
    "rollback",
    "scrub",
    "status",
    "unlisted_columns",
    "verify",
]
