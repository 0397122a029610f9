"""Copy a live database file, with everything in its WAL, to a single quiet file.

Where SQLite's locks keep the file itself one committed state, its bytes are copied (`file_copy`).
Otherwise one step of SQLite's backup API copies it: with any number of pages that copy starts over
at each commit of another process and never ends under a steady writer.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from replica_platform.backup.child.check import check_file, require_sqlite
from replica_platform.backup.child.file_copy import (
    JournalModeChanged,
    copy_in_steps,
    copy_with_empty_wal,
)
from replica_platform.backup.child.messages import Snapshot
from replica_platform.backup.errors import Damaged, stayed_locked
from replica_platform.core.files import fsync_file
from replica_platform.core.reports import Progress
from replica_platform.core.sqlite import sqlite3

ALL_PAGES = -1
BUSY_WAIT_MS = 10_000
# A TRUNCATE checkpoint blocks writers while it waits for readers, so it waits briefly; the copy
# has the WAL's content either way.
CHECKPOINT_WAIT_MS = 200
PROGRESS_EVERY_S = 0.1


def take_snapshot(
    source: Path,
    copy: Path,
    checkpoint: bool,
    is_kept: bool,
    with_md5: bool,
    progress: Progress,
    when_copied: Callable[[], object],
) -> Snapshot:
    """Copy the live `source` to `copy` and check the copy.

    Args:
        source: A database that a program may be writing to.
        copy: The file to make.
        checkpoint: Whether to shorten the source's WAL first.
        is_kept: Whether the copy stays: then it is made durable.
        with_md5: Compute MD5 too.
        progress: Called with the bytes copied plus the bytes checked.
        when_copied: Called when the copy is complete and its check begins.

    Raises:
        Unreadable: The source is not a database, or cannot be read.
        Busy: The source stayed locked for `BUSY_WAIT_MS`.
        Damaged: The copy did not leave WAL mode.
    """
    require_sqlite(source)
    expected_bytes = _live_bytes(source)
    started = time.perf_counter()
    with _reporting_growth(copy, expected_bytes, progress):
        checkpointed, journal_mode = _copy(source, copy, checkpoint)
    when_copied()
    with ThreadPoolExecutor(1) as beside:
        # The check needs the processor, and this needs the disk.
        durable = beside.submit(_make_durable if is_kept else _now, copy)
        check = check_file(
            copy,
            drop_cache=False,
            progress=lambda done, size, unit: progress(size + done, 2 * size, unit),
            with_md5=with_md5,
        )
    copy_s = durable.result() - started
    return Snapshot(check, checkpointed, journal_mode, round(copy_s, 4))


def _make_durable(copy: Path) -> float:
    """Bring the copy to the disk; return when that was done."""
    fsync_file(copy)
    return time.perf_counter()


def _now(copy: Path) -> float:
    return time.perf_counter()


def _copy(live: Path, copy: Path, checkpoint: bool) -> tuple[list[int] | None, str]:
    """Copy; return the checkpoint's (busy, frames, moved) and the journal mode."""
    # Opened before SQLite opens it and closed after that: a close drops this process's locks.
    with (
        _opened(live) as live_fd,
        closing(_open_live(live, writable=checkpoint)) as source,
    ):
        checkpointed = _checkpoint(source) if checkpoint else None
        mode = source.execute("pragma journal_mode").fetchone()[0]
        source.execute(f"pragma busy_timeout={BUSY_WAIT_MS}")
        if not _copy_bytes(source, live, live_fd, copy, mode):
            _copy_by_sqlite(source, live, copy)
    return checkpointed, mode


def _copy_bytes(
    source: sqlite3.Connection, live: Path, live_fd: int, copy: Path, mode: str
) -> bool:
    """Copy the file's bytes, if its locks allow that; return whether they do."""
    if not os.path.samestat(os.fstat(live_fd), live.stat()):
        return False  # replaced just now
    if mode == "wal":
        return copy_with_empty_wal(source, live_fd, live.with_name(live.name + "-wal"), copy)
    try:
        copy_in_steps(source, live_fd, copy)
    except JournalModeChanged:
        return False
    return True


@contextmanager
def _opened(live: Path) -> Iterator[int]:
    live_fd = os.open(live, os.O_RDONLY)
    try:
        yield live_fd
    finally:
        os.close(live_fd)


def _copy_by_sqlite(source: sqlite3.Connection, live: Path, copy: Path) -> None:
    """Copy in one step of SQLite's backup API."""
    with closing(sqlite3.connect(copy, isolation_level=None)) as quiet:
        # A copy that is cut short is thrown away, so it needs no journal.
        quiet.execute("pragma journal_mode=off")
        quiet.execute("pragma synchronous=off")
        source.backup(quiet, pages=ALL_PAGES, progress=_stop_when_locked(live))
    with closing(sqlite3.connect(copy, isolation_level=None)) as quiet:
        # One file without sidecars; a copy in WAL mode would grow them when it is read.
        if quiet.execute("pragma journal_mode=delete").fetchone()[0] != "delete":
            raise Damaged(f"The copy of {live} did not leave WAL mode; it was not kept.")


def _stop_when_locked(live: Path) -> Callable[[int, int, int], None]:
    """Return a callback that ends the copy: Python retries a locked source for ever."""

    def stop_when_locked(status: int, _remaining: int, _pages: int) -> None:
        if status & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise stayed_locked(live)  # SQLite has waited for BUSY_WAIT_MS by now

    return stop_when_locked


def _open_live(live: Path, writable: bool) -> sqlite3.Connection:
    """Open the live file: read-only unless a checkpoint or a crash needs it writable."""

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
        return None  # not writable, or busy: the copy does not depend on it


def _live_bytes(live: Path) -> int:
    wal = live.with_name(live.name + "-wal")
    return live.stat().st_size + (wal.stat().st_size if wal.exists() else 0)


@contextmanager
def _reporting_growth(copy: Path, expected_bytes: int, progress: Progress) -> Iterator[None]:
    """Report the copy's size from a thread: a copy in one step has no progress callback."""
    finished = threading.Event()

    def report() -> None:
        while not finished.wait(PROGRESS_EVERY_S):
            if copy.exists():
                done = min(copy.stat().st_size, expected_bytes)
                progress(done, 2 * expected_bytes, "bytes")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
