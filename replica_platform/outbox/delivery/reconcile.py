"""A target that forgot: restored to a point in time, failed over, or another one altogether.

The ledger in the file is compared with the ledger in the target; what the target lacks goes
again. `reconcile` looks further, at every delivered row that is still here.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import psycopg

from replica_platform.core import postgres
from replica_platform.core.errors import PlatformError
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.delivery import queue as marking
from replica_platform.outbox.delivery import target as landing
from replica_platform.outbox.delivery.failures import classify
from replica_platform.outbox.reports import FileReconciliation, Reconciliation
from replica_platform.outbox.slots import outbox_files

ROWS_A_LOOK = 5000
DEADLINE_S = 60.0


def reopen_forgotten(local: sqlite3.Connection, connection: psycopg.Connection) -> int:
    """Let every batch go again that the target's ledger lacks; returns how many rows.

    Where the target has seen a `seq` that this file never gave out, the file is a restored
    older copy: it gets a new identity first.
    """
    uuid = file.file_uuid(local)
    if landing.highest_seq(connection, uuid) > file.last_seq(local):
        with file.writing(local):
            file.renew(local)
    missing = _missing_batches(local, connection)
    reopened = 0
    if missing:
        with file.writing(local):
            for batch_uuid, number, first_seq, last_seq in missing:
                reopened += marking.reopen(local, first_seq, last_seq)
                local.execute(
                    "delete from batch where file_uuid = ? and number = ?", (batch_uuid, number)
                )
    return reopened


def reconcile(
    paths: Sequence[Path], target: str, *, reopen: bool = False, deadline_s: float = DEADLINE_S
) -> Reconciliation:
    """Compare what each file says was delivered with what the target holds.

    First by ledger and digest, then every delivered row still in the file by id and content.
    With `reopen` what is missing goes again with the next drain; without, nothing is changed.
    """
    known: set[str] = set()
    found = [
        _reconcile_file(path, target, reopen, deadline_s, known) for path in outbox_files(paths)
    ]
    return Reconciliation((*found, *_taken_away(paths, target, deadline_s, known)))


def _reconcile_file(
    path: Path, target: str, reopen: bool, deadline_s: float, known: set[str]
) -> FileReconciliation:
    """Look at one file; its identities are added to `known`."""
    try:
        with (
            closing(file.open_existing(path, read_only=not reopen)) as local,
            closing(postgres.connect(target, autocommit=True)) as there,
        ):
            known.update(file.identities(local))
            with postgres.deadline(there, deadline_s):
                landing.prepare(there, deadline_s)
                missing = _missing_batches(local, there)
            checked, lacking = _missing_rows(local, there, deadline_s)
            reopened = _reopen_rows(local, lacking) if reopen else 0
            (batches,) = local.execute("select count(*) from batch").fetchone()
    except (psycopg.Error, PlatformError) as error:
        return FileReconciliation(str(path), why=classify(error).sentence)
    return FileReconciliation(
        str(path), int(batches), len(missing), checked, len(lacking), reopened
    )


def _taken_away(
    paths: Sequence[Path], target: str, deadline_s: float, known: set[str]
) -> list[FileReconciliation]:
    """Files that delivered from one of these folders and are not there any more.

    What they had acknowledged and not delivered is gone with them, and no count would show it.
    """
    folders = {Path(path).resolve() for path in paths if Path(path).is_dir()}
    files = {Path(path).resolve() for path in paths}
    try:
        with (
            closing(postgres.connect(target, autocommit=True)) as there,
            postgres.deadline(there, deadline_s),
        ):
            landing.prepare(there, deadline_s)
            delivered = landing.known_files(there)
    except (psycopg.Error, PlatformError):
        return []  # each file's own line says that the target cannot be asked
    return [
        FileReconciliation(
            str(path),
            why=f"the outbox that delivered {landed} rows from here was taken away or replaced; "
            "put it back, or, if it was retired empty, delete its row of outbox.file "
            f"({file_uuid})",
        )
        for file_uuid, path, landed in delivered
        if file_uuid not in known and (path in files or path.parent in folders)
    ]


def _missing_batches(
    local: sqlite3.Connection, connection: psycopg.Connection
) -> list[tuple[str, int, int, int]]:
    ours = local.execute(
        "select file_uuid, number, first_seq, last_seq, digest from batch"
    ).fetchall()
    if not ours:
        return []
    theirs = landing.ledger_of(connection, sorted({batch[0] for batch in ours}))
    return [batch[:4] for batch in ours if theirs.get((batch[0], batch[1])) != batch[4]]


def _missing_rows(
    local: sqlite3.Connection, connection: psycopg.Connection, deadline_s: float
) -> tuple[int, list[int]]:
    """How many delivered rows were looked for, and the `seq`s that the target lacks."""
    checked, after = 0, 0
    lacking: list[int] = []
    while True:
        rows = local.execute(
            "select seq, id, sha from record where seq > ? and seq <= ? "
            "and seq not in (select seq from again) and seq not in (select seq from dead) "
            "order by seq limit ?",
            (after, file.mark(local), ROWS_A_LOOK),
        ).fetchall()
        if not rows:
            return checked, lacking
        with postgres.deadline(connection, deadline_s):
            there = landing.present(connection, rows)
        lacking += [seq for seq, _, _ in rows if seq not in there]
        checked += len(rows)
        after = rows[-1][0]


def _reopen_rows(local: sqlite3.Connection, seqs: Sequence[int]) -> int:
    with file.writing(local):
        return sum(marking.reopen(local, seq, seq) for seq in seqs)
