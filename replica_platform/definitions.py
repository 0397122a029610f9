"""The whole platform on one page: four pillars, their resources, and when they run.

    a master DuckDB file → a replica             a generation for all readers      DuckDBReplica
        → purposes                               a masked part for one use         PurposeReplicas
    a lake with many writers → a replica         a generation for each snapshot    LakeMaster
    tables of a Postgres → tables of another     synced by xmin                    XminTables
    workers' outboxes → records                  drained to the target             WorkerOutboxes
    SQLite files → backups                       verified copies                   SqliteBackups

Databases and folders are in `app.settings`. The `defs.yaml` of each folder of `defs/` says what of
this there is; `defs/sample` can be left out.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import dagster as dg

from replica_platform import defs as platform_defs
from replica_platform.app.configured import SAMPLE
from replica_platform.app.entries import WrongEntry
from replica_platform.app.project import find_project
from replica_platform.app.settings import Settings
from replica_platform.components.machine import Machine, loading_on
from replica_platform.core.errors import PlatformError
from replica_platform.io_managers.published_replica import PublishedReplicaIOManager
from replica_platform.io_managers.xmin_merge import XminMergeIOManager
from replica_platform.resources.platform import PlatformConfig
from replica_platform.resources.postgres import PostgresDatabase

PACKAGE = Path(__file__).parent

# Dagster passes this beta parameter when it rebuilds a check; this project never does.
warnings.filterwarnings("ignore", message="Parameter `execution_type` of function")


def build_resources(settings: Settings) -> dict[str, Any]:
    """Return the resources of a platform by the names that assets ask for."""
    platform = PlatformConfig(
        data_dir=str(settings.data_dir),
        backup_dir=str(settings.backup_dir),
        bars=str(settings.bars) if settings.bars else None,
        symbols=settings.symbols,
        watch_rules=str(settings.watch_rules) if settings.watch_rules else None,
        xmin_workers=settings.xmin_workers,
        xmin_batch_bytes=settings.xmin_batch_bytes,
        keep_runs_days=settings.keep_runs_days,
        keep_generations=settings.keep_generations,
        sample=settings.sample,
        block_store=settings.block_store,
    )
    target = PostgresDatabase(settings.target)
    return {
        "platform": platform,
        "source": PostgresDatabase(settings.source),
        "target": target,
        "published_replica": PublishedReplicaIOManager(platform=platform),
        "xmin_merge": XminMergeIOManager(target=target),
    }


def build_defs(settings: Settings, project: Path | None = None) -> dg.Definitions:
    """Return all pillars with the resources that the settings describe.

    Two platforms can be built in one process: each has its own folders and databases.

    Args:
        settings: Folders, databases and limits; no other setting is read.
        project: The folder of a project made by `replica init`, whose definitions are added.

    Returns:
        The assets, checks, schedules and sensors of `defs/`, ready to run.
    """
    return dg.Definitions.merge(
        _load(settings, project),
        dg.Definitions(
            resources=build_resources(settings),
            # One process for all steps: each further process costs 2.5 s, and the master has one
            # writer anyway.
            executor=dg.in_process_executor,
        ),
    )


def load_defs(settings: Settings) -> dg.Definitions:
    """Return the platform of the working folder, and what is wrong with its files as one sentence.

    Raises:
        WrongEntry: A `defs.yaml` or a module of `defs/` cannot be loaded.
    """
    project = find_project()
    if project is not None and str(project.folder) not in sys.path:
        # The package of a project is not installed, and the command is not in its folder.
        sys.path.insert(0, str(project.folder))
    try:
        return build_defs(settings, project.folder if project else None)
    except PlatformError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if cause is error:  # not from a file: a bug, which needs its traceback
            raise
        sentence = " ".join(str(cause).split())
        raise WrongEntry(f"The definitions cannot be loaded: {sentence}") from error


def _load(settings: Settings, project: Path | None) -> dg.Definitions:
    """Return the definitions of `defs/`, with or without the sample's, and those of a project."""
    machine = Machine(settings.data_dir, settings.source)
    with loading_on(machine), warnings.catch_warnings():
        # `load_from_defs_folder` does this too: Dagster's own code uses what it warns of.
        warnings.simplefilter("ignore")
        # Not `for_project`: an installed package has no pyproject.toml.
        tree = dg.ComponentTree.from_module(platform_defs, PACKAGE.parent)
        parts = [
            tree.build_defs_at_path(path.name)
            for path in sorted((PACKAGE / "defs").iterdir())
            if not path.name.startswith("_") and (settings.sample or path.name != SAMPLE)
        ]
        if project is not None:
            parts.append(dg.ComponentTree.for_project(project).build_defs())
        return without_repeats(dg.Definitions.merge(*parts))


def without_repeats(loaded: dg.Definitions) -> dg.Definitions:
    """Return the definitions with each external asset once; several components may name it."""
    external = {spec.key: spec for spec in loaded.assets or () if isinstance(spec, dg.AssetSpec)}
    # Modules that import an asset of another one contain it too.
    others = {id(one): one for one in loaded.assets or () if not isinstance(one, dg.AssetSpec)}
    return dg.Definitions(
        assets=[*external.values(), *map(_with_source, others.values())],
        asset_checks=[_as_checks(one) for one in loaded.asset_checks or ()],
        schedules=loaded.schedules,
        sensors=loaded.sensors,
        jobs=loaded.jobs,
        resources=loaded.resources,
        metadata=loaded.metadata,
        component_tree=loaded.component_tree,
    )


def _as_checks(checks: dg.AssetsDefinition) -> dg.AssetsDefinition:
    """Return checks of a component as their own class, which Dagster has lost on the way.

    Otherwise it converts the checks of a step once for each of them: 14 s for 2,000 checks.
    """
    if isinstance(checks, dg.AssetChecksDefinition):
        return checks
    return dg.AssetChecksDefinition(**checks.get_attributes_dict())


def _with_source(asset: Any) -> Any:
    """Return an asset with a link to its line of code; one of a component has that of its YAML."""
    if not isinstance(asset, dg.AssetsDefinition) or any(
        "dagster/code_references" in spec.metadata for spec in asset.specs
    ):
        return asset
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a beta feature, which decides nothing
        (linked,) = dg.with_source_code_references([asset])
    return linked


@dg.definitions
def defs() -> dg.Definitions:
    """Return the platform of the settings in force, for `dg` and the Dagster pages."""
    return build_defs(Settings())
