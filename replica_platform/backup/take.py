"""Take a backup: a verified copy of a live SQLite file, with its manifest beside it.

Lock the folder, copy in a child process under SQLite's locks, check the copy, and only then give
file and manifest their names, or send the copy's blocks to a block store. A run that stops half-way
leaves no file under a backup's name that is not whole and checked.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from replica_platform.backup.blocks.keys import encrypting_cipher
from replica_platform.backup.blocks.store import BackupBlocks
from replica_platform.backup.child.messages import Snapshot
from replica_platform.backup.child.process import take_snapshot
from replica_platform.backup.errors import Damaged, NameTaken, NoRoom, Unreadable, translate_errors
from replica_platform.backup.folder import backups, clear_leftovers, folder_lock
from replica_platform.backup.manifest import Backup, in_utc, manifest_of
from replica_platform.core.disk_space import shortage
from replica_platform.core.errors import TerminalError
from replica_platform.core.files import fsync_file, replacing
from replica_platform.core.reports import Progress

SPARE_BYTES = 1 << 20
NAME_POLL_S = 0.05


def backup(
    file: Path,
    to: Path,
    *,
    skip_checkpoint: bool = False,
    blocks: Path | str | None = None,
    encrypt: bool = False,
    md5: bool = False,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Backup:
    """Copy `file`, with everything in its WAL, into the folder `to`, checked and durable.

    With `blocks` only the manifest is kept in the folder. The content goes to a block store, as
    blocks of which each is stored once: another backup costs what changed since. An interrupted
    one goes on where it was.

    It is safe while another process, or this one, writes to the file. In WAL mode it blocks no
    writer; without it the file is copied in steps, for which writers wait.

    Args:
        file: A SQLite database.
        to: The folder of backups; made if absent.
        skip_checkpoint: Leave the source unwritten. The checkpoint only shortens its WAL; the
            copy has everything either way.
        blocks: The block store, a folder or a URL such as s3://bucket/prefix; a plain file is
            kept if left out.
        encrypt: Whether the blocks are encrypted, with the first key in `REPLICA_BACKUP_KEY`.
        md5: Whether the manifest has an MD5 too, for tools that know no other digest; it takes
            more time than all else.
        now: The moment in the backup's name and manifest; the next free second if left out.
        progress: Called with the bytes copied plus the bytes checked, then with the blocks sent.

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
        KeyMissing: There is no key to encrypt with.
        BlockStoreUnavailable: The block store refused a request; what was sent is kept there.
        BlockStoreDamaged: The manifest of the newest backup in the block store is damaged.
        TerminalError: `encrypt` without `blocks`.
    """
    began = time.perf_counter()
    folder, name = to.absolute(), file.stem
    source = _existing(file)
    store = _block_store(blocks, encrypt)
    with folder_lock(folder, name):
        taken_at, target = _free_name(folder, name, now)
        _require_space(source, folder)
        mode = source.stat().st_mode & 0o644  # readable only for users who may read the source
        try:
            with (
                translate_errors("back up", source, target),
                replacing(manifest_of(target), mode) as manifest,
                _discarded(target) if store else replacing(target, mode) as copy,
            ):
                snapshot, digests = _copy_and_digest(
                    source, copy, store, not skip_checkpoint, md5, progress
                )
                kept = backups(folder, name)
                _require_sound(snapshot, source, kept)
                taken = _described(snapshot, target, source, taken_at)
                sent = None
                if store:
                    resend = _is_damaged_in(store, kept)
                    sent = store.send(copy, digests, name, resend=resend, progress=progress)
                    taken = replace(
                        taken, blocks=store.where, key_id=store.key_id, stored_bytes=sent.bytes_sent
                    )
                taken = replace(taken, seconds=round(time.perf_counter() - began, 4))
                # Durable before the content gets its name: the next run finishes one that was
                # killed between the two from this.
                manifest.write_text(taken.manifest_text())
                fsync_file(manifest)
                if store and sent:
                    store.record(sent, taken)
        except BaseException:
            clear_leftovers(folder, name)
            raise
    return taken


def _copy_and_digest(
    source: Path,
    copy: Path,
    store: BackupBlocks | None,
    checkpoint: bool,
    md5: bool,
    progress: Progress | None,
) -> tuple[Snapshot, list[str]]:
    """Copy and check in the child; digest the copy's blocks for the store beside the check.

    Nothing is sent yet, because the copy may turn out to be damaged.
    """
    digesting: list[Future[list[str]]] = []
    with ThreadPoolExecutor(1, "digest") as beside:

        def digest_copy() -> None:
            if store:
                digesting.append(beside.submit(store.digests, copy))

        snapshot = take_snapshot(
            source,
            copy,
            checkpoint=checkpoint,
            is_kept=store is None,
            with_md5=md5,
            when_copied=digest_copy,
            progress=progress,
        )
        return snapshot, digesting[0].result() if digesting else []


def _block_store(blocks: Path | str | None, encrypt: bool) -> BackupBlocks | None:
    if blocks is None:
        if encrypt:
            raise TerminalError(
                "Only backups that are kept as blocks are encrypted; give --blocks too "
                "(in a defs.yaml, `blocks`)."
            )
        return None
    return BackupBlocks(blocks, encrypting_cipher() if encrypt else None)


@contextmanager
def _discarded(target: Path) -> Iterator[Path]:
    """Yield a temporary path as `replacing` does, whose file does not outlast the block."""
    copy = target.with_name(f".tmp-{target.name}-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _is_damaged_in(store: BackupBlocks, newest_first: list[Backup]) -> bool:
    """Return whether the newest backup in the store was found damaged, so that its blocks are."""
    place = (store.where, store.key_id)
    newest = next((one for one in newest_first if (one.blocks, one.key_id) == place), None)
    return newest is not None and newest.damage is not None


def _described(snapshot: Snapshot, target: Path, source: Path, taken_at: datetime) -> Backup:
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
        seconds=0.0,
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
