"""The platform on one page: four pillars, what they run on, and when they run.

    symbols → ohlcv → indicators, watchlist      in the master DuckDB          defs/market/
        → market_replica                         a generation for all readers  defs/replica/
            → watchlist_prices                   merged into the target        defs/replica/
        → purposes/…                             parts of it, each for one use defs/purposes/
    source/fds/… → raw_data/…                    synced by xmin                defs/warehouse/
    worker_outboxes → conversations              drained to the target         defs/outbox/
    backups/…                                    verified copies               defs/backups/

Where data comes from and goes to is in `settings`; tables to sync, outboxes to drain, parts to
publish and files to back up are listed in the `defs.yaml` of their folders.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import dagster as dg

from replica_platform.app.settings import Settings
from replica_platform.io_managers.published_replica import PublishedReplicaIOManager
from replica_platform.io_managers.xmin_merge import XminMergeIOManager
from replica_platform.resources.master import MasterDuckDB
from replica_platform.resources.postgres import PostgresDatabase
from replica_platform.resources.store import ReplicaStore

# Dagster passes its own beta parameter when it rebuilds a check; nothing of ours uses it.
warnings.filterwarnings("ignore", message="Parameter `execution_type` of function")


def resources(settings: Settings) -> dict[str, Any]:
    """What assets stand on. DSNs are named by variable, so that no password reaches a page."""
    for name, value in settings.environment().items():
        os.environ.setdefault(name, value)
    store = ReplicaStore(
        folder=str(settings.store), keep=settings.keep_generations, blocks=settings.block_store
    )
    target = PostgresDatabase(dsn=dg.EnvVar("REPLICA_TARGET_DSN"))
    return {
        "master": MasterDuckDB(database=str(settings.master)),
        "store": store,
        "source": PostgresDatabase(dsn=dg.EnvVar("REPLICA_SOURCE_DSN")),
        "target": target,
        "published_replica": PublishedReplicaIOManager(store=store),
        "xmin_merge": XminMergeIOManager(target=target),
    }


@dg.definitions
def defs() -> dg.Definitions:
    """Every pillar in `defs/`, its automation, and the resources in force."""
    return dg.Definitions.merge(
        dg.load_from_defs_folder(path_within_project=Path(__file__).parent),
        dg.Definitions(
            resources=resources(Settings()),
            # One process for all steps: another one a step costs 2.5 s, and the master has one
            # writer anyway.
            executor=dg.in_process_executor,
            # Without it every event of every step is printed, at the level of debugging.
            loggers={"console": dg.colored_console_logger},
        ),
    )
