"""Incremental Postgres → Postgres copy: every committed change arrives, once.

`sync` brings one table in step, `sync_group` many at one snapshot, `validate` proves it,
`tune` shows how the machine is used, `standings` what was synced when, `merge_frame` writes a
data frame by key and `read_rows` reads it back.
"""

from replica_platform.xmin.frame import MergeReport, merge_frame, read_rows
from replica_platform.xmin.integrity import Integrity, validate
from replica_platform.xmin.reports import GroupReport, SyncReport, TableSpec
from replica_platform.xmin.standing import Standing, standings
from replica_platform.xmin.sync import sync, sync_group
from replica_platform.xmin.tune import Tuning, tune

__all__ = [
    "GroupReport",
    "Integrity",
    "MergeReport",
    "Standing",
    "SyncReport",
    "TableSpec",
    "Tuning",
    "merge_frame",
    "read_rows",
    "standings",
    "sync",
    "sync_group",
    "tune",
    "validate",
]
