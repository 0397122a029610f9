"""How outbox files stand: backlog, dead rows and conflicts; `replay` and `settle`.

A file that is not there is never made, and a file that cannot be read is named.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from replica_platform.core.errors import PlatformError
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.delivery import breaker
from replica_platform.outbox.delivery import queue as marking
from replica_platform.outbox.reports import Backlog, ConflictRow, DeadRow, FileBacklog
from replica_platform.outbox.slots import outbox_files


def backlog(paths: Sequence[Path]) -> Backlog:
    """How many rows wait in `paths` (files or folders), since when, and what stands in the way."""
    return Backlog(tuple(_file_backlog(path) for path in outbox_files(paths)))


def dead(path: Path) -> list[DeadRow]:
    """The rows of a file that Postgres refused, oldest first. Errors: `NotAnOutbox`."""
    now = time.time()
    with closing(file.open_existing(Path(path), read_only=True)) as local:
        rows = local.execute(
            "select seq, id, kind, sqlstate, error, attempts, since, code_version "
            "from dead join record using (seq) order by seq"
        ).fetchall()
    return [
        DeadRow(str(path), seq, id, kind, state, error, tries, since, max(0.0, now - since), code)
        for seq, id, kind, state, error, tries, since, code in rows
    ]


def replay(path: Path) -> int:
    """Let the dead rows of a file go again with the next drain; returns how many."""
    with closing(file.open_existing(Path(path))) as local:
        return marking.revive(local)


def conflicts(path: Path) -> list[ConflictRow]:
    """The rows of a file that came with a known id or key and other content, oldest first.

    Each is kept whole in the target's `outbox.conflict`. Errors: `NotAnOutbox`.
    """
    now = time.time()
    with closing(file.open_existing(Path(path), read_only=True)) as local:
        rows = local.execute(
            "select seq, id, kind, place, found_at "
            "from conflict join record using (seq) order by seq"
        ).fetchall()
    return [
        ConflictRow(str(path), seq, id, kind, place, found_at, max(0.0, now - found_at))
        for seq, id, kind, place, found_at in rows
    ]


def settle(path: Path) -> int:
    """Somebody has looked at the conflicts of a file: show them no more; returns how many.

    What was kept of them in the target stays there.
    """
    with closing(file.open_existing(Path(path))) as local, file.writing(local):
        return int(local.execute("delete from conflict").rowcount)


def _file_backlog(path: Path) -> FileBacklog:
    try:
        with (
            closing(file.open_existing(path, read_only=True)) as local,
            file.sentences(path, "read"),
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
        (file.mark(local),),
    ).fetchone()
    door = breaker.read(local)
    last = file.get_meta(local, "last_delivery")
    wal = path.with_name(path.name + "-wal")
    return FileBacklog(
        str(path),
        pending=file.pending(local),
        oldest_pending_age_s=0.0 if oldest is None else max(0.0, time.time() - oldest),
        dead=dead_rows,
        conflicts=conflicts,
        file_bytes=path.stat().st_size + (wal.stat().st_size if wal.exists() else 0),
        breaker=door.state,
        breaker_why=door.why,
        last_delivery=None if last is None else float(last),
    )
