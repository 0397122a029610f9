"""Incremental Postgres → Postgres copy: every committed change arrives, once.

`sync` brings one table in step, `sync_group` many at one snapshot, `validate` proves it,
`tune` shows how the machine is used, `standings` what was synced when, `forget` removes a table
from that, `merge_frame` writes a data frame by key and `read_rows` reads it back.
"""

from replica_platform.xmin.integrity.validate import Integrity, validate
from replica_platform.xmin.reports import GroupReport, SyncReport, TableSpec
from replica_platform.xmin.sync import sync, sync_group
from replica_platform.xmin.target.sync_status import Standing, forget, standings
from replica_platform.xmin.tune import Tuning, tune
from replica_platform.xmin.upsert import MergeReport, merge_frame, read_rows

__all__ = [
    "GroupReport",
    "Integrity",
    "MergeReport",
    "Standing",
    "SyncReport",
    "TableSpec",
    "Tuning",
    "forget",
    "merge_frame",
    "read_rows",
    "standings",
    "sync",
    "sync_group",
    "tune",
    "validate",
]
