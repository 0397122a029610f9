"""Take a backup: a verified copy of a live SQLite file, with its manifest beside it.

The story: be alone in the folder, copy in a child with one step of SQLite's backup API, check
the copy, and only then give file and manifest their names. Whatever stops it half-way leaves
no file under a backup's name that is not a whole, checked one.
"""

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from replica_platform.backup.child.process import in_child
from replica_platform.backup.errors import Damaged, NameTaken, NoRoom, Unreadable
from replica_platform.backup.failures import FULL_ERRNOS, explain_os
from replica_platform.backup.folder import at_work, backups, clear_leftovers
from replica_platform.backup.manifest import Backup, in_utc, manifest_of
from replica_platform.core.files import fsync_file, replacing
from replica_platform.core.reports import Progress

SPARE_BYTES = 1 << 20


def backup(
    file: Path,
    to: Path,
    *,
    skip_checkpoint: bool = False,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Backup:
    """Copy `file`, with everything in its WAL, into the folder `to`, checked and durable.

    Safe while another process, or this one, writes to it, and nobody waits for the copy.
    The checkpoint first only shortens the file's WAL; with `skip_checkpoint` the source is
    not written at all. The name carries `now` (UTC when it is left out) to the second.
    `progress` is told (bytes done, bytes in all); copying and checking each count once.

    Raises `Unreadable`, `Damaged` (the source itself is not sound), `NoRoom`, `Busy` or
    `NameTaken`; then the folder is as it was.
    """
    began = time.perf_counter()
    to, name = to.absolute(), file.stem
    source = _source(file)
    with at_work(to, name):
        taken_at, target = _free_name(to, name, now)
        _must_fit(source, to)
        mode = source.stat().st_mode & 0o644  # whoever may not read the source, not its copy
        try:
            with replacing(manifest_of(target), mode) as told, replacing(target, mode) as copy:
                facts = in_child(
                    "snapshot",
                    progress,
                    source=str(source),
                    to=str(copy),
                    checkpoint=not skip_checkpoint,
                )
                _must_be_sound(facts["integrity"], source, backups(to, name))
                taken = Backup(
                    file=target,
                    name=name,
                    source=str(source),
                    taken_at=in_utc(taken_at),
                    verified_at=datetime.now(UTC),
                    seconds=round(time.perf_counter() - began, 4),
                    tool_version=tool_version(),
                    **facts,
                )
                # Durable before the file gets its name: a run killed between the two renames
                # is finished by the next one from this.
                told.write_text(taken.manifest_text())
                fsync_file(told)
        except BaseException as error:
            clear_leftovers(to, name)
            if isinstance(error, OSError) and error.errno in FULL_ERRNOS:
                raise explain_os(error, "back up") from error
            raise
    return taken


def tool_version() -> str:
    """This package's version, for the manifest."""
    # Imported here because it costs half of the package's import, and each child pays that.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("replica-platform")
    except PackageNotFoundError:
        return "not installed"


def _source(file: Path) -> Path:
    # Only looked at from outside: opening it here would drop this process's own locks on it.
    try:
        is_file = file.is_file()
    except OSError as error:
        raise Unreadable(f"Cannot reach {file}: {error.strerror}. Check its folder.") from error
    if not is_file:
        raise Unreadable(f"There is no file {file}; check the path.")
    return file.resolve()


def _free_name(to: Path, name: str, now: datetime | None) -> tuple[datetime, Path]:
    """The moment of a backup and its name; without a given moment, the next free second."""
    while True:
        taken_at = now or datetime.now(UTC)
        target = to / f"{name}_backup_{taken_at:%Y%m%d_%H%M%S}.db"
        if not target.exists() and not manifest_of(target).exists():
            return taken_at, target
        if now:
            raise NameTaken(
                f"{target} is there already and is never overwritten; give another time."
            )
        time.sleep(0.05)


def _must_fit(source: Path, to: Path) -> None:
    wal = source.with_name(source.name + "-wal")
    needed = source.stat().st_size + (wal.stat().st_size if wal.exists() else 0) + SPARE_BYTES
    free = shutil.disk_usage(to).free
    if free < needed:
        raise NoRoom(
            f"A copy of {source} needs {needed:,} bytes and {to} has {free:,} free; "
            "make room, or run `replica backup --cleanup`."
        )


def _must_be_sound(integrity: str, source: Path, kept: list[Backup]) -> None:
    if integrity == "ok":
        return
    last = next((b for b in kept if b.source == str(source) and b.sound), None)
    advice = (
        f"the last sound backup is {last.file}; restore it with `replica restore`"
        if last
        else "recover what is left with `sqlite3 FILE .recover`"
    )
    raise Damaged(f"{source} is damaged ({integrity}); no backup was kept of it. Now {advice}.")
