"""The entry of SQLite files to back up: their names, folders and times."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from pydantic import model_validator

from replica_platform.app.entries.base import (
    Cron,
    Entry,
    Name,
    Part,
    Positive,
    Timezone,
    WrongEntry,
)


class DrillEntry(Part):
    """A query that a restored backup must answer with a number.

    Attributes:
        sql: The query; the first value of its first row counts.
        at_least: The least number that is right.
        at_most: The greatest number that is right.
    """

    sql: str
    at_least: float | None = None
    at_most: float | None = None


class FileEntry(Part):
    """A SQLite file, and how long its backups are kept.

    Attributes:
        path: The file, absolute or below the data folder.
        name: Its name among the backups. When absent, the stem of the file, preceded by its
            folder's name where an earlier file has the same stem.
        pulled_from: For a file on another host, its address `ssh://user@host:port/path.db`; it
            is copied to `path` before each backup.
        method: How it is copied: `query` transfers the rows that differ, `pages` the blocks that
            differ, `scp` the whole file.
        known_hosts: The file of host keys to trust; those of `~/.ssh` when absent.
        client_key: The private key to log in with; those of `~/.ssh` when absent.
        keep_days: Backups younger than this many days are kept.
        keep_count: The newest backups that are kept at any age.
        blocks: The block store that keeps the content: a folder, absolute or below the data
            folder, or a URL such as s3://bucket/prefix. When absent each backup is a file.
        encrypted: Whether the blocks are encrypted, with the first key in `REPLICA_BACKUP_KEY`.
        drill: Queries that are run on a restored backup, one backup a night.
    """

    path: str
    name: str | None = None
    pulled_from: str | None = None
    method: Literal["query", "pages", "scp"] = "query"
    known_hosts: str | None = None
    client_key: str | None = None
    keep_days: int = 30
    keep_count: int = 7
    blocks: str | None = None
    encrypted: bool = False
    drill: Sequence[DrillEntry] = ()

    @model_validator(mode="after")
    def _sound(self) -> "FileEntry":
        if self.keep_days < 0 or self.keep_count < 1:
            raise ValueError("keep_days is at least 0, and keep_count at least 1")
        return self


class SqliteBackupsEntry(Entry):
    """SQLite files to back up.

    Attributes:
        files: The files to back up.
        name: The first part of the assets' keys. Schedules, groups and the folder of backups of
            another name than `backups` carry it too, so that several entries live side by side.
        fresh_within_s: The age in seconds above which the newest backup counts as too old.
        cron_schedule: When the files of this host are backed up.
        remote_cron_schedule: When the files of other hosts are copied here and backed up.
        timezone: The time zone of both schedules.
        repair_interval_s: How often the sensor looks whether the newest backup is damaged, in
            seconds.
        folder: The folder of the backups below that of all backups; that of the name when absent.
        group: The group of the assets; `backups`, and `remote` for those of other hosts, when
            absent, preceded by another name.
        pool: The pool of the backups, so that not all of them run at once; none when absent.
    """

    files: Sequence[FileEntry]
    name: Name = "backups"
    fresh_within_s: Positive = 26 * 3600
    cron_schedule: Cron = "0 3 * * *"
    remote_cron_schedule: Cron = "0 9 * * *"
    timezone: Timezone = "UTC"
    repair_interval_s: Positive = 60
    folder: str | None = None
    group: Name | None = None
    pool: Name | None = None

    def backups_of(self, backups: Path, file: FileEntry, name: str) -> Path:
        """Return the folder of a file's backups.

        Args:
            backups: The folder of all backups.
            file: The file.
            name: Its name from `names_of`.
        """
        # Those of the first entry are where they were before there could be others.
        first = "." if self.name == "backups" else self.name
        own = backups / (first if self.folder is None else self.folder)
        return own if name == Path(file.path).stem else own / name


class _File(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str | None: ...


def names_of(files: Sequence[_File]) -> list[str]:
    """Return a name for each file: its stem, or with its folder's name where that is taken.

    The first of several files of one stem keeps the plain name, so that a file which is added
    later does not rename the backups of another one.

    Raises:
        WrongEntry: Two files still have one name.
    """
    names: dict[str, str] = {}
    for file in files:
        path = Path(file.path)
        name = file.name or path.stem
        if name in names and not file.name:
            name = f"{path.parent.name or 'data'}_{path.stem}"
        if name in names:
            raise WrongEntry(
                f"{names[name]} and {file.path} would both be called {name!r}; "
                "give one of them another `name`."
            )
        names[name] = file.path
    return list(names)
