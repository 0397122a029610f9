"""What happens inside the child: take a snapshot of a live file, look a quiet file over.

Everything here opens database files, so nothing of it is called in the caller's own process
(see `child`). Names, manifests and folders are not known here.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from replica_platform.backup.child.contents import count_tables, integrity_of
from replica_platform.backup.errors import Damaged, Unreadable
from replica_platform.backup.failures import locked
from replica_platform.core.files import fsync_file
from replica_platform.core.reports import Progress
from replica_platform.core.sqlite import sqlite3

HASH_BLOCK_BYTES = 1 << 20
BUSY_WAIT_MS = 10_000
# A TRUNCATE checkpoint holds the writers off while it waits for readers, so it waits briefly;
# the copy takes in the WAL whether or not the checkpoint came through.
CHECKPOINT_WAIT_MS = 200
HEADER = b"SQLite format 3\x00"
OUTBOX_APPLICATION_ID = 0x4F555442  # "OUTB"; see `new_identity`


def snapshot(source: str, to: str, checkpoint: bool, progress: Progress) -> dict[str, Any]:
    """Copy the live `source` with everything in its WAL to the quiet file `to`, and check it.

    One step (`pages=-1`): with any other number the copy starts over at each foreign commit
    and never ends under a steady writer. Progress is in bytes of copying plus bytes of checking.
    """
    live, copy = Path(source), Path(to)
    _must_be_sqlite(live)
    expected = _live_bytes(live)
    started = time.perf_counter()
    with _watching(copy, expected, progress):
        checkpointed, journal_mode = _copy(live, copy, checkpoint)
    fsync_file(copy)
    copied_s = time.perf_counter() - started
    facts = examine(
        to,
        drop_cache=False,
        progress=lambda done, size, unit: progress(size + done, 2 * size, unit),
    )
    return {
        **facts,
        "checkpoint": checkpointed,
        "journal_mode": journal_mode,
        "copy_s": round(copied_s, 4),
    }


def examine(file: str, drop_cache: bool, progress: Progress) -> dict[str, Any]:
    """Hash a quiet file, ask SQLite whether it is sound, count its tables; change nothing.

    `drop_cache` asks the kernel to forget the file first, so that the disk is read, not memory.
    Hashing and SQLite's check go side by side: both leave the interpreter free.
    """
    path = Path(file)
    _must_be_sqlite(path)
    started = time.perf_counter()
    if drop_cache:
        _forget(path)
    # Immutable: no locks, no sidecars, works on read-only media; the file is quiet.
    uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    with _hashing(path, progress) as hashed, closing(sqlite3.connect(uri, uri=True)) as db:
        # Through memory: integrity_check of 464 MB in 0.9 s instead of 1.8.
        db.execute(f"pragma mmap_size={1 << 40}")
        db.execute("pragma cache_size=-65536")
        integrity = integrity_of(db)
        tables, newest = count_tables(db) if integrity == "ok" else ({}, {})
        pages, page_size = (
            db.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "page_size")
        )
    return {
        **hashed,
        "integrity": integrity,
        "tables": tables,
        "newest": newest,
        "pages": pages,
        "page_size": page_size,
        "sqlite_version": sqlite3.sqlite_version,
        "check_s": round(time.perf_counter() - started, 4),
    }


def revive(
    backup: str, to: str, sha256: str, journal_mode: str, progress: Progress
) -> dict[str, Any]:
    """Copy a verified backup to `to`, give an outbox a new identity, and check the result.

    Nothing is believed twice: the digest is that of the bytes on their way.
    """
    copy = Path(to)
    if _copy_and_hash(Path(backup), copy, progress) != sha256:
        raise Damaged(f"{backup} changed while it was restored; nothing was put in place.")
    with closing(sqlite3.connect(copy, isolation_level=None)) as db:
        file_uuid = new_identity(db)
        db.execute(f"pragma journal_mode={'wal' if journal_mode == 'wal' else 'delete'}")
    facts = examine(to, drop_cache=False, progress=lambda *_: None)
    if facts["integrity"] != "ok":
        raise Damaged(
            f"The restored copy of {backup} is not sound ({facts['integrity']}); "
            "nothing was put in place. Check the disk."
        )
    fsync_file(copy)
    return {**facts, "file_uuid": file_uuid}


def new_identity(db: sqlite3.Connection) -> str | None:
    """Give an outbox a new `file_uuid` and return it; return None for any other file.

    A restored outbox numbers its rows from the past on; under the old identity the target
    would take new batches for those that it has. The former identities are kept, because the
    outbox's ledger and its conflicts are looked up by them.

    The same rule is `outbox.file.renew`, which cannot be imported here: engines do not know one
    another. An outbox is a file with `OUTBOX_APPLICATION_ID`; its table `meta (key, value)` holds
    `file_uuid` and, newest first and separated by spaces, `former`. A test in
    `replica_platform_tests/backup/test_restore.py` compares the two.

    Raises:
        Damaged: the file is an outbox and holds no identity.
    """
    if db.execute("pragma application_id").fetchone() != (OUTBOX_APPLICATION_ID,):
        return None
    known = "select key, value from meta where key in ('file_uuid', 'former')"
    try:
        meta = dict(db.execute(known).fetchall())
        now, former = meta["file_uuid"], meta.get("former", "")
    except (sqlite3.OperationalError, KeyError) as error:
        raise Damaged(
            "The backup is an outbox and has no identity (table meta, key file_uuid), so nothing "
            "was put in place; restore an older backup, or use the version that made this outbox."
        ) from error
    from uuid import uuid4  # rarely needed, and it brings half the standard library

    fresh = str(uuid4())
    db.execute("begin immediate")
    db.executemany(
        "insert into meta (key, value) values (?, ?) "
        "on conflict (key) do update set value = excluded.value",
        [("file_uuid", fresh), ("former", " ".join([now, *former.split()]))],
    )
    db.execute("commit")
    return fresh


def _copy(live: Path, copy: Path, checkpoint: bool) -> tuple[list[int] | None, str]:
    """The one-step copy; returns the checkpoint's (busy, frames, moved) and the source's mode."""
    with closing(_open_live(live, writable=checkpoint)) as source:
        checkpointed = _checkpoint(source) if checkpoint else None
        mode = source.execute("pragma journal_mode").fetchone()[0]
        with closing(sqlite3.connect(copy, isolation_level=None)) as quiet:
            # A copy that is cut short is thrown away, so it needs no journal of its own.
            quiet.execute("pragma journal_mode=off")
            quiet.execute("pragma synchronous=off")
            source.execute(f"pragma busy_timeout={BUSY_WAIT_MS}")
            source.backup(quiet, pages=-1, progress=_stop_when_locked(live))
        with closing(sqlite3.connect(copy, isolation_level=None)) as quiet:
            # One file, with no sidecars to lose; a copy in WAL mode would grow them when read.
            if quiet.execute("pragma journal_mode=delete").fetchone()[0] != "delete":
                raise Damaged(f"The copy of {live} did not leave WAL mode; it was not kept.")
    return checkpointed, mode


def _stop_when_locked(live: Path) -> Callable[[int, int, int], None]:
    """A copy's progress that ends it: Python alone would try a locked source again for ever."""

    def look(status: int, _remaining: int, _pages: int) -> None:
        if status & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise locked(str(live))  # SQLite has waited for BUSY_WAIT_MS by now

    return look


def _open_live(live: Path, writable: bool) -> sqlite3.Connection:
    """Open the live file: read-only unless a checkpoint is asked for or a crash needs undoing."""

    def connect(mode: str) -> sqlite3.Connection:
        uri = f"{live.resolve().as_uri()}?mode={mode}"
        opened = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_WAIT_MS / 1000)
        opened.execute("select count(*) from sqlite_master").fetchone()
        return opened

    if writable:
        return connect("rw")
    try:
        return connect("ro")
    except sqlite3.OperationalError as error:
        # A program that died left a hot journal; only a writable connection may roll it back.
        if getattr(error, "sqlite_errorname", "") != "SQLITE_READONLY":
            raise
        return connect("rw")


def _checkpoint(source: sqlite3.Connection) -> list[int] | None:
    source.execute(f"pragma busy_timeout={CHECKPOINT_WAIT_MS}")
    try:
        return list(source.execute("pragma wal_checkpoint(truncate)").fetchone())
    except sqlite3.OperationalError:
        return None  # not ours to write, or busy: the copy does not depend on it


def _must_be_sqlite(path: Path) -> None:
    try:
        with path.open("rb") as file:
            header = file.read(len(HEADER))
    except OSError as error:
        raise Unreadable(
            f"Cannot read {path}: {error.strerror}. Check the path and its permissions."
        ) from error
    if header != HEADER:
        raise Unreadable(
            f"{path} is not a SQLite database ({'it is empty' if not header else 'wrong header'}); "
            "check the path."
        )


def _live_bytes(live: Path) -> int:
    wal = live.with_name(live.name + "-wal")
    return live.stat().st_size + (wal.stat().st_size if wal.exists() else 0)


def _copy_and_hash(source: Path, to: Path, progress: Progress) -> str:
    size, done = source.stat().st_size, 0
    digest = hashlib.sha256()
    with source.open("rb") as reading, to.open("wb") as writing:
        while block := reading.read(HASH_BLOCK_BYTES):
            digest.update(block)
            writing.write(block)
            done += len(block)
            progress(done, size, "bytes")
    return digest.hexdigest()


@contextmanager
def _hashing(path: Path, progress: Progress) -> Iterator[dict[str, Any]]:
    """Hash a file beside the block; the answer is in the yielded dictionary after it."""
    answer: dict[str, Any] = {}
    failed: list[BaseException] = []

    def work() -> None:
        try:
            answer.update(_hash(path, progress))
        except OSError as error:
            failed.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield answer
    finally:
        worker.join()
    if failed:
        raise failed[0]


def _hash(path: Path, progress: Progress) -> dict[str, Any]:
    size = path.stat().st_size
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    buffer = memoryview(bytearray(HASH_BLOCK_BYTES))
    done, told = 0, 0.0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            sha256.update(buffer[:count])
            md5.update(buffer[:count])
            done += count
            if time.monotonic() - told > 0.1:
                told = time.monotonic()
                progress(done, size, "bytes")
    progress(done, size, "bytes")
    return {"bytes": done, "sha256": sha256.hexdigest(), "md5": md5.hexdigest()}


def _forget(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


@contextmanager
def _watching(copy: Path, expected: int, progress: Progress) -> Iterator[None]:
    """Report the copy's growth from beside it: one step has no other progress to tell."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            if copy.exists():
                progress(min(copy.stat().st_size, expected), 2 * expected, "bytes")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "snapshot": snapshot,
    "examine": examine,
    "revive": revive,
}
