"""The state of all that is configured, engine by engine: what metrics, history and deck look at."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from replica_platform import replica
from replica_platform.app.configured import Configured
from replica_platform.app.entries import (
    DuckDBReplicaEntry,
    PurposeReplicasEntry,
    SqliteBackupsEntry,
    WorkerOutboxesEntry,
    XminTablesEntry,
)
from replica_platform.app.entries.base import environment_dsn
from replica_platform.app.entries.sqlite_files import names_of
from replica_platform.backup import FolderStatus
from replica_platform.backup import status as backup_status
from replica_platform.outbox import Backlog, backlog
from replica_platform.replica import ReplicaStatus
from replica_platform.xmin import SyncStatus
from replica_platform.xmin import status as sync_status


class Locations(Protocol):
    """Where the state is looked for; the settings of a platform are such."""

    @property
    def target(self) -> str:
        """The DSN of the target."""

    @property
    def backup_dir(self) -> Path:
        """The folder of the backups."""

    def path(self, path: str) -> Path:
        """Return a path below the data folder; an absolute path stays as it is."""


@dataclass(frozen=True)
class PlatformLocations:
    """The locations of a platform whose settings were read elsewhere.

    Attributes:
        target: The DSN of the target.
        data_dir: The data folder.
        backup_dir: The folder of the backups.
    """

    target: str
    data_dir: Path
    backup_dir: Path

    def path(self, path: str) -> Path:
        """Return a path below the data folder; an absolute path stays as it is."""
        return self.data_dir / path


def tables(settings: Locations, found: Configured) -> Iterator[SyncStatus]:
    """Yield the status of every table of every target.

    Raises:
        CannotConnect: A target does not answer.
    """
    for target in dict.fromkeys(group.target for group in found.of(XminTablesEntry)):
        yield from sync_status(environment_dsn(target) if target else settings.target)


def outboxes(settings: Locations, found: Configured) -> Iterator[tuple[str, str, Backlog]]:
    """Yield the entry, the node and the backlog of each folder that is there."""
    for entry in found.here(WorkerOutboxesEntry):
        for node, folder in entry.nodes.items():
            if settings.path(folder).is_dir():
                yield entry.name, node, backlog([settings.path(folder)])


def replicas(settings: Locations, found: Configured) -> Iterator[tuple[str, ReplicaStatus]]:
    """Yield the name and status of each replica, purpose and region of the host."""
    path = settings.path
    for entry in found.here(DuckDBReplicaEntry):
        yield entry.name, replica.status(path(entry.store_folder), path(entry.master))
    for parts in found.here(PurposeReplicasEntry):
        for one in parts.made():
            status = replica.status(path(parts.store_folder(one.name)), path(parts.master))
            yield f"{parts.name}/{one.name}", status
    for entry in found.of(DuckDBReplicaEntry):
        for region in entry.regions:
            if region.host == found.host:
                folder = path(entry.region_folder(region))
                yield f"regions/{region.host}/{entry.name}", replica.status(folder)


def backups(settings: Locations, found: Configured) -> Iterator[tuple[str, FolderStatus]]:
    """Yield the name and the backups of each file."""
    for entry in found.here(SqliteBackupsEntry):
        for file, name in zip(entry.files, names_of(entry.files), strict=True):
            folder = entry.backups_of(settings.backup_dir, file, name)
            yield f"{entry.name}/{name}", backup_status(folder, settings.path(file.path).stem)
