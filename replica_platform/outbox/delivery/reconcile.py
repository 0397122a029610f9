"""The comparison of files with a target that may have lost rows: restored, failed over, replaced.

A drain compares the file with its one ledger row in the target (see `ledger`); it resends what the
target lacks. `verify` goes further and looks for every delivered row that is still in the file;
`repair`, and a drain with `repair`, also queue the missing ones for resending. That reads the key
of each such row in the target, so not every drain does it.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import psycopg

from replica_platform.core.errors import PlatformError
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file, queue
from replica_platform.outbox.delivery import ledger, statements
from replica_platform.outbox.delivery.failures import translate_errors
from replica_platform.outbox.delivery.target import Target, begin
from replica_platform.outbox.errors import translate_errors as translate_sqlite_errors
from replica_platform.outbox.reports import FileReconciliation, Reconciliation
from replica_platform.outbox.slots import outbox_files

ROWS_PER_QUERY = 5000
DEADLINE_S = 60.0


def resend_lost_batches(
    local: sqlite3.Connection, connection: psycopg.Connection, deadline_s: float
) -> int:
    """Queue every batch that the target lacks for resending; return how many rows.

    The file gets a new identity if the target has a `seq` that it never assigned, or another
    history of its batches: then one of them is a restored older copy.
    """
    compared = ledger.compare(local, connection, deadline_s)
    mine = compared[0]
    is_copy = mine.head.last_seq > file.last_seq(local) or mine.is_other
    reopened = 0
    lost = [one for one in compared if queue.last_entry(local, one.file_uuid).number > one.known]
    if is_copy or lost or mine.unnoted:
        with file.writing(local):
            for one in lost:
                reopened += queue.resend_batches(local, one.file_uuid, one.known)
            if is_copy:
                file.renew(local)
            elif mine.unnoted:
                _note_unnoted(local, mine)
    for one in compared:
        if one.head.is_former:
            ledger.start(connection, one.file_uuid, one.head, deadline_s)
    if is_copy or mine.head == ledger.Head():
        ledger.start(connection, file.file_uuid(local), ledger.Head(), deadline_s)
    return reopened


def _note_unnoted(local: sqlite3.Connection, found: ledger.Comparison) -> None:
    """Note the batch after which a drain died, as the base of the next one.

    Its rows still wait in the file, so the note covers none.
    """
    seq = file.delivered_through(local)
    head = found.head
    entry = queue.LedgerEntry(head.number, head.chain, head.landed_at)
    queue.note_batch(local, found.file_uuid, entry, (seq, seq), 0)


def verify(paths: Sequence[Path], target: str, *, deadline_s: float = DEADLINE_S) -> Reconciliation:
    """Compare what each file notes as delivered with what the target has; change nothing.

    Batches are compared by ledger and digest, then every delivered row that is still in the file
    by id and content. An outbox that was taken away is named.

    Args:
        paths: Outbox files, or folders of `*.db`.
        target: The connection string of the Postgres that they deliver to.
        deadline_s: The limit of each query, in seconds.

    Returns:
        One report for each file; what cannot be read has its `why`.
    """
    return _compare(paths, target, deadline_s, resend=False)


def repair(paths: Sequence[Path], target: str, *, deadline_s: float = DEADLINE_S) -> Reconciliation:
    """Do the same as `verify`, and queue the missing rows for the next drain.

    Args:
        paths: Outbox files, or folders of `*.db`.
        target: The connection string of the Postgres that they deliver to.
        deadline_s: The limit of each query, in seconds.

    Returns:
        One report for each file, with how many rows were queued.
    """
    return _compare(paths, target, deadline_s, resend=True)


def reconcile(
    paths: Sequence[Path], target: str, *, reopen: bool = False, deadline_s: float = DEADLINE_S
) -> Reconciliation:
    """Do the same as `repair` with `reopen`, and as `verify` without.

    Args:
        paths: Outbox files, or folders of `*.db`.
        target: The connection string of the Postgres that they deliver to.
        reopen: Whether to queue the missing rows for the next drain.
        deadline_s: The limit of each query, in seconds.

    Returns:
        One report for each file.
    """
    return _compare(paths, target, deadline_s, resend=reopen)


def _compare(paths: Sequence[Path], dsn: str, deadline_s: float, *, resend: bool) -> Reconciliation:
    known: set[str] = set()
    with closing(Target(dsn, deadline_s)) as target:
        found = [
            _compare_file(path, target, deadline_s, known, resend=resend)
            for path in outbox_files(paths)
        ]
        removed = _removed_files(paths, target, deadline_s, known)
    return Reconciliation((*found, *removed))


def _compare_file(
    path: Path, target: Target, deadline_s: float, known: set[str], *, resend: bool
) -> FileReconciliation:
    """Compare one file; add its identities to `known`."""
    try:
        with (
            translate_errors(),
            translate_sqlite_errors(path, "compare it"),
            closing(file.open_existing(path, read_only=not resend)) as local,
        ):
            known.update(file.identities(local))
            connection = target.connect()
            batches_missing = sum(
                queue.batches_after(local, one.file_uuid, one.known)
                for one in ledger.compare(local, connection, deadline_s)
            )
            checked, missing = 0, list[int]()
            for count, seqs in missing_rows(local, connection, deadline_s):
                checked += count
                missing += seqs
            reopened = resend_rows(local, missing) if resend else 0
            (batches,) = local.execute("select count(*) from batch").fetchone()
    except PlatformError as error:
        target.close()
        return FileReconciliation(str(path), why=str(error))
    return FileReconciliation(
        str(path),
        batches=int(batches),
        batches_missing=batches_missing,
        rows_checked=checked,
        rows_missing=len(missing),
        reopened=reopened,
    )


def _removed_files(
    paths: Sequence[Path], target: Target, deadline_s: float, known: set[str]
) -> list[FileReconciliation]:
    """Report files that delivered from one of these folders and are no longer there.

    Their acknowledged but undelivered rows are gone with them, and no count would show it.
    """
    folders = {Path(path).resolve() for path in paths if Path(path).is_dir()}
    files = {Path(path).resolve() for path in paths}
    try:
        with translate_errors():
            connection = target.connect()
            with begin(connection, deadline_s):
                delivered = statements.known_files(connection)
    except PlatformError:
        return []  # each file's own report says that the target does not answer
    return [
        FileReconciliation(
            str(path),
            why=f"the outbox that delivered {rows} rows from here was taken away or replaced; "
            "put it back, or, if it was retired empty, delete its row of outbox.file "
            f"({file_uuid})",
        )
        for file_uuid, path, rows in delivered
        if file_uuid not in known and (path in files or path.parent in folders)
    ]


def missing_rows(
    local: sqlite3.Connection, connection: psycopg.Connection, deadline_s: float
) -> Iterator[tuple[int, list[int]]]:
    """Look for the delivered rows that are still in the file, page by page.

    Yield how many rows a page has, and the `seq`s of those that the target lacks.
    """
    after = 0
    while True:
        rows = local.execute(
            "select seq, id, sha from record where seq > ? and seq <= ? "
            "and seq not in (select seq from again) and seq not in (select seq from dead) "
            "order by seq limit ?",
            (after, file.delivered_through(local), ROWS_PER_QUERY),
        ).fetchall()
        if not rows:
            return
        with begin(connection, deadline_s):
            present = statements.present(connection, rows)
        yield len(rows), [seq for seq, _, _ in rows if seq not in present]
        after = rows[-1][0]


def resend_rows(local: sqlite3.Connection, seqs: Sequence[int]) -> int:
    """Queue these rows for resending; return how many."""
    if not seqs:
        return 0
    with file.writing(local):
        return sum(queue.resend(local, seq, seq) for seq in seqs)
