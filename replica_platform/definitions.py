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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.definitions_load_context import (
    DefinitionsLoadContext,
    DefinitionsLoadType,
)

from replica_platform import defs as platform_defs
from replica_platform.app.configured import SAMPLE
from replica_platform.app.entries import WrongEntry
from replica_platform.app.entries.base import HOST_TAG
from replica_platform.app.project import find_project
from replica_platform.app.settings import Settings
from replica_platform.components.machine import Machine, loading_on
from replica_platform.core.errors import PlatformError
from replica_platform.defs.automation import by_host
from replica_platform.defs.history import history_on
from replica_platform.io_managers.published_replica import PublishedReplicaIOManager
from replica_platform.io_managers.xmin_merge import XminMergeIOManager
from replica_platform.resources.alerts import alert_receivers
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
        host=settings.host,
        block_store=settings.block_store,
    )
    target = PostgresDatabase(settings.target)
    return {
        "platform": platform,
        "alert_receivers": alert_receivers(settings),
        "source": PostgresDatabase(settings.source),
        "target": target,
        "published_replica": PublishedReplicaIOManager(platform=platform),
        "xmin_merge": XminMergeIOManager(target=target),
    }


# The definitions that this process has built, where it keeps them.
_kept: dict[Any, dg.Definitions] | None = None


def keep_definitions() -> None:
    """Let this process build the same definitions once: a worker executes many runs of them."""
    global _kept
    _kept = {} if _kept is None else _kept


def build_defs(settings: Settings, project: Path | None = None) -> dg.Definitions:
    """Return all pillars with the resources that the settings describe.

    Two platforms can be built in one process: each has its own folders and databases.

    Args:
        settings: Folders, databases and limits; no other setting is read.
        project: The folder of a project made by `replica init`, whose definitions are added.

    Returns:
        The assets, checks, schedules and sensors of `defs/`, ready to run.
    """
    if _kept is None:
        return _build(settings, project)
    key = (repr(settings.model_dump()), project, repr(sorted(_told().items())))
    if key not in _kept:
        _kept.clear()  # what a reload of the code server has replaced
        _kept[key] = _build(settings, project)
    return _kept[key]


def _told() -> Mapping[str, Any]:
    """Return what the code server of this run told of the catalogs of its sources."""
    if not DefinitionsLoadContext.is_set():
        return {}
    context = DefinitionsLoadContext.get()
    if context.load_type is DefinitionsLoadType.INITIALIZATION:
        return {}
    return context.reconstruction_metadata


def _build(settings: Settings, project: Path | None) -> dg.Definitions:
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
    hosts = hosts_of(loaded)
    return dg.Definitions(
        assets=[*external.values(), *map(_with_source, others.values())],
        asset_checks=[_as_checks(one) for one in loaded.asset_checks or ()],
        schedules=[*(loaded.schedules or ()), *map(history_on, hosts)],
        sensors=by_host(list(loaded.sensors or ()), hosts),
        jobs=loaded.jobs,
        resources=loaded.resources,
        metadata=loaded.metadata,
        component_tree=loaded.component_tree,
    )


def hosts_of(loaded: dg.Definitions) -> list[str]:
    """Return the hosts that assets name, by name."""
    hosts = set()
    for asset in loaded.assets or ():
        specs = asset.specs if isinstance(asset, dg.AssetsDefinition) else [asset]
        hosts |= {
            spec.tags[HOST_TAG]
            for spec in specs
            if isinstance(spec, dg.AssetSpec) and HOST_TAG in spec.tags
        }
    return sorted(hosts)


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
