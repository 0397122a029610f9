"""The state of outbox files: backlog, dead rows and conflicts; and a person's answers to them.

Everything here reads the file only and needs no target. A missing file is never created, and a
file that cannot be read is named in the report.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from replica_platform.core.errors import PlatformError
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import breaker, file, queue
from replica_platform.outbox.errors import translate_errors
from replica_platform.outbox.reports import Backlog, ConflictRow, DeadRow, FileBacklog
from replica_platform.outbox.slots import outbox_files


def backlog(paths: Sequence[Path]) -> Backlog:
    """Report how many rows wait, since when, and what blocks them.

    Args:
        paths: Outbox files, or folders of `*.db`.

    Returns:
        One report for each file; a file that cannot be read has its `why`.
    """
    return Backlog(tuple(_file_backlog(path) for path in outbox_files(paths)))


status = backlog


def dead(path: Path) -> list[DeadRow]:
    """List the rows of a file that Postgres refused.

    Args:
        path: The outbox file.

    Returns:
        The dead rows, oldest first.

    Raises:
        NotAnOutbox: The file does not exist or is not an outbox.
    """
    now = time.time()
    with closing(file.open_existing(Path(path), read_only=True)) as local:
        rows = local.execute(
            "select seq, id, kind, sqlstate, error, attempts, since, code_version "
            "from dead join record using (seq) order by seq"
        ).fetchall()
    return [
        DeadRow(
            str(path), seq, id, kind, sqlstate, error, attempts, since, max(0.0, now - since), code
        )
        for seq, id, kind, sqlstate, error, attempts, since, code in rows
    ]


def replay(path: Path) -> int:
    """Queue the dead rows of a file for the next drain.

    Args:
        path: The outbox file.

    Returns:
        How many rows were queued.

    Raises:
        NotAnOutbox: The file does not exist or is not an outbox.
    """
    with closing(file.open_existing(Path(path))) as local:
        return queue.revive(local)


def conflicts(path: Path) -> list[ConflictRow]:
    """List the rows of a file whose id or key the target has with other content.

    The target keeps each of them whole in `outbox.conflict`.

    Args:
        path: The outbox file.

    Returns:
        The rows in conflict, oldest first.

    Raises:
        NotAnOutbox: The file does not exist or is not an outbox.
    """
    now = time.time()
    with closing(file.open_existing(Path(path), read_only=True)) as local:
        rows = local.execute(
            "select seq, id, kind, place, found_at "
            "from conflict join record using (seq) order by seq"
        ).fetchall()
    return [
        ConflictRow(str(path), seq, id, kind, table, found_at, max(0.0, now - found_at))
        for seq, id, kind, table, found_at in rows
    ]


def dismiss_conflicts(path: Path) -> int:
    """Remove the conflicts of a file from its reports; the target keeps what it stored of them.

    Args:
        path: The outbox file.

    Returns:
        How many conflicts were dismissed.

    Raises:
        NotAnOutbox: The file does not exist or is not an outbox.
    """
    with closing(file.open_existing(Path(path))) as local, file.writing(local):
        return int(local.execute("delete from conflict").rowcount)


settle = dismiss_conflicts


def _file_backlog(path: Path) -> FileBacklog:
    try:
        with (
            closing(file.open_existing(path, read_only=True)) as local,
            translate_errors(path, "read"),
        ):
            return _read_backlog(path, local)
    except PlatformError as error:
        return FileBacklog(str(path), why=str(error))


def _read_backlog(path: Path, local: sqlite3.Connection) -> FileBacklog:
    (dead_rows,) = local.execute("select count(*) from dead").fetchone()
    (conflicts,) = local.execute("select count(*) from conflict").fetchone()
    (oldest,) = local.execute(
        "select min(created_at) from (select created_at from record where seq = ? + 1 "
        "union all select created_at from again join record using (seq))",
        (file.delivered_through(local),),
    ).fetchone()
    state = breaker.read(local)
    last = file.get_meta(local, "last_delivery")
    wal = file.log_path(path)
    return FileBacklog(
        str(path),
        pending=file.pending(local),
        oldest_pending_age_s=0.0 if oldest is None else max(0.0, time.time() - oldest),
        dead=dead_rows,
        conflicts=conflicts,
        file_bytes=path.stat().st_size + (wal.stat().st_size if wal.exists() else 0),
        breaker=state.state,
        breaker_why=state.why,
        last_delivery=None if last is None else float(last),
    )
