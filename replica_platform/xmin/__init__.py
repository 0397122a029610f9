"""Incremental copy from Postgres to Postgres: every committed change arrives, once.

`sync` brings one table in step and `sync_group` many at one snapshot; `status` tells when each was
synced, `forget` removes the watermark of a table that no longer is. `verify` (or `validate`) proves
a table equal, `tune` shows how the machine is used.
`merge_frame` writes a data frame by key and `read_rows` reads a table. There is no separate repair:
a sync that finds its target wrong repairs it, and `mode="full"` always reads everything.

Nothing here knows Dagster or the platform's settings. The modules in the order of the story:

- `errors`, `names`, `reports`, `session`: what all others share.
- `sync`: the functions; `group`: one sync, top to bottom, each step one of the following modules.
- `lock`: lock the target tables and read their watermarks.
- `plan`, `decide`: how each table is read, and why.
- `stage`: read what is needed into a staging table.
- `commit`: write rows, deletes and the watermark in one transaction.
- `upsert`: data frames.

and the folders, from the bottom up: `source` (catalog and snapshot), `target` (tables and
watermarks), `copy` (ranges, workers and streams), `blocks` (changed blocks by WAL summaries),
`integrity` (deletes, repair and proof), `first_copy` (loading in slices), and above all
`continuous` (a group watched).
"""

from typing import TYPE_CHECKING

from replica_platform.core.faces import load_late
from replica_platform.core.postgres import BadDsn, CannotConnect
from replica_platform.xmin.errors import (
    BadTableName,
    CannotSync,
    MissingGrant,
    NoSuchTable,
    NotFlushed,
    SchemaRefused,
    SourceInterrupted,
    TableBusy,
    TargetInterrupted,
    TargetTaken,
    TooManyDeletes,
)
from replica_platform.xmin.reports import (
    ContentProof,
    GroupReport,
    Mask,
    SyncReport,
    TableSpec,
    WriteMethod,
)
from replica_platform.xmin.source.listing import ListedColumn, ListedTable, Reference, list_tables
from replica_platform.xmin.target.sync_status import SyncStatus, forget, status

if TYPE_CHECKING:
    from replica_platform.xmin.blocks.reading import BlockOptions
    from replica_platform.xmin.continuous.loop import WatchReport, watch, watch_for
    from replica_platform.xmin.copy.survey import Survey, SurveyedTable, survey
    from replica_platform.xmin.copy.tune import Tuning, tune
    from replica_platform.xmin.frames.upsert import MergeReport, merge_frame, read_rows
    from replica_platform.xmin.integrity.parts import Proving
    from replica_platform.xmin.integrity.validate import Integrity, validate
    from replica_platform.xmin.integrity.validate import validate as verify
    from replica_platform.xmin.sync import sync, sync_group

# Loaded on first use: a status, or a sync of an idle table, takes no longer than their import.
load_late(
    __name__,
    {
        "BlockOptions": "blocks.reading",
        "Integrity": "integrity.validate",
        "MergeReport": "frames.upsert",
        "Proving": "integrity.parts",
        "Survey": "copy.survey",
        "SurveyedTable": "copy.survey",
        "Tuning": "copy.tune",
        "WatchReport": "continuous.loop",
        "merge_frame": "frames.upsert",
        "read_rows": "frames.upsert",
        "survey": "copy.survey",
        "sync": "sync",
        "sync_group": "sync",
        "tune": "copy.tune",
        "validate": "integrity.validate",
        "verify": "integrity.validate:validate",
        "watch": "continuous.loop",
        "watch_for": "continuous.loop",
    },
)

# Names of earlier versions.
Standing = SyncStatus
standings = status


__all__ = [
    "BadDsn",
    "BadTableName",
    "BlockOptions",
    "CannotConnect",
    "CannotSync",
    "ContentProof",
    "GroupReport",
    "Integrity",
    "ListedColumn",
    "ListedTable",
    "Mask",
    "MergeReport",
    "MissingGrant",
    "NoSuchTable",
    "NotFlushed",
    "Proving",
    "Reference",
    "SchemaRefused",
    "SourceInterrupted",
    "Standing",
    "Survey",
    "SurveyedTable",
    "SyncReport",
    "SyncStatus",
    "TableBusy",
    "TableSpec",
    "TargetInterrupted",
    "TargetTaken",
    "TooManyDeletes",
    "Tuning",
    "WatchReport",
    "WriteMethod",
    "forget",
    "list_tables",
    "merge_frame",
    "read_rows",
    "standings",
    "status",
    "survey",
    "sync",
    "sync_group",
    "tune",
    "validate",
    "verify",
    "watch",
    "watch_for",
]
