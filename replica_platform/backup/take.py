"""Take a backup: a verified copy of a live SQLite file, with its manifest beside it.

Lock the folder, copy in a child process with one step of SQLite's backup API, check the copy, and
only then give file and manifest their names. A run that stops half-way leaves no file under a
backup's name that is not whole and checked.
"""

import time
from datetime import UTC, datetime
from pathlib import Path

from replica_platform.backup.child.messages import Snapshot
from replica_platform.backup.child.process import take_snapshot
from replica_platform.backup.errors import Damaged, NameTaken, NoRoom, Unreadable, translate_errors
from replica_platform.backup.folder import backups, clear_leftovers, folder_lock
from replica_platform.backup.manifest import Backup, in_utc, manifest_of
from replica_platform.core.disk_space import shortage
from replica_platform.core.files import fsync_file, replacing
from replica_platform.core.reports import Progress

SPARE_BYTES = 1 << 20
NAME_POLL_S = 0.05


def backup(
    file: Path,
    to: Path,
    *,
    skip_checkpoint: bool = False,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Backup:
    """Copy `file`, with everything in its WAL, into the folder `to`, checked and durable.

    It is safe while another process, or this one, writes to the file. In WAL mode it blocks no
    writer; without it the file is copied in steps, for which writers wait.

    Args:
        file: A SQLite database.
        to: The folder of backups; made if absent.
        skip_checkpoint: Leave the source unwritten. The checkpoint only shortens its WAL; the
            copy has everything either way.
        now: The moment in the backup's name and manifest; the next free second if left out.
        progress: Called with the bytes copied plus the bytes checked.

    Returns:
        The backup, with what is in it. `unchecked` gives the reason where a sound source cannot
        be checked in full, because its application has collations or functions that it needs.

    Raises:
        Unreadable: The file does not exist, cannot be read, or is not a database.
        Damaged: The source itself is not sound; its last sound backup is named.
        NoRoom: The folder's disk has no space for the copy.
        Busy: The source stayed locked, or another process works on these backups.
        NameTaken: A backup of the moment `now` exists.
        ChildFailed: The child process ended without an answer.
    """
    began = time.perf_counter()
    folder, name = to.absolute(), file.stem
    source = _existing(file)
    with folder_lock(folder, name):
        taken_at, target = _free_name(folder, name, now)
        _require_space(source, folder)
        mode = source.stat().st_mode & 0o644  # readable only for users who may read the source
        try:
            with (
                translate_errors("back up", source, target),
                replacing(manifest_of(target), mode) as manifest,
                replacing(target, mode) as copy,
            ):
                snapshot = take_snapshot(
                    source, copy, checkpoint=not skip_checkpoint, progress=progress
                )
                _require_sound(snapshot, source, backups(folder, name))
                seconds = time.perf_counter() - began
                taken = _described(snapshot, target, source, taken_at, seconds)
                # Durable before the file gets its name: the next run finishes one that was
                # killed between the two renames from this.
                manifest.write_text(taken.manifest_text())
                fsync_file(manifest)
        except BaseException:
            clear_leftovers(folder, name)
            raise
    return taken


def _described(
    snapshot: Snapshot, target: Path, source: Path, taken_at: datetime, seconds: float
) -> Backup:
    check = snapshot.check
    return Backup(
        file=target,
        name=source.stem,
        source=str(source),
        taken_at=in_utc(taken_at),
        bytes=check.bytes,
        sha256=check.sha256,
        md5=check.md5,
        pages=check.pages,
        page_size=check.page_size,
        tables=check.tables,
        newest=check.newest,
        integrity=check.integrity,
        unchecked=check.unchecked,
        pending=check.pending,
        journal_mode=snapshot.journal_mode,
        checkpoint=snapshot.checkpoint,
        copy_s=snapshot.copy_s,
        check_s=check.check_s,
        seconds=round(seconds, 4),
        sqlite_version=check.sqlite_version,
        tool_version=_tool_version(),
        verified_at=datetime.now(UTC),
    )


def _tool_version() -> str:
    # Imported here because it costs half of the package's import, and each child pays that.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("replica-platform")
    except PackageNotFoundError:
        return "not installed"


def _existing(file: Path) -> Path:
    # Only its entry is read: opening the file here would drop this process's locks on it.
    try:
        is_file = file.is_file()
    except OSError as error:
        raise Unreadable(f"Cannot reach {file}: {error.strerror}. Check its folder.") from error
    if not is_file:
        raise Unreadable(f"There is no file {file}; check the path.")
    return file.resolve()


def _free_name(folder: Path, name: str, now: datetime | None) -> tuple[datetime, Path]:
    """Return a backup's moment and path; without a given moment, those of the next free second."""
    while True:
        taken_at = now or datetime.now(UTC)
        target = folder / f"{name}_backup_{taken_at:%Y%m%d_%H%M%S}.db"
        if not target.exists() and not manifest_of(target).exists():
            return taken_at, target
        if now:
            raise NameTaken(f"{target} exists and is never overwritten; give another time.")
        time.sleep(NAME_POLL_S)


def _require_space(source: Path, folder: Path) -> None:
    wal = source.with_name(source.name + "-wal")
    needed = source.stat().st_size + (wal.stat().st_size if wal.exists() else 0) + SPARE_BYTES
    if missing := shortage(folder, needed):
        raise NoRoom(
            f"No copy of {source} was made: {missing}; make room, or run "
            "`replica backup --cleanup`."
        )


def _require_sound(snapshot: Snapshot, source: Path, kept: list[Backup]) -> None:
    if snapshot.check.is_sound:
        return
    last = next((backup for backup in kept if backup.source == str(source) and backup.ok), None)
    advice = (
        f"the last sound backup is {last.file}; restore it with `replica restore-backup`"
        if last
        else "recover what is left with `sqlite3 FILE .recover`"
    )
    raise Damaged(
        f"{source} is damaged ({snapshot.check.integrity}); no backup was kept of it. Now {advice}."
    )
