"""What a backup knows of an outbox: its identity, and which of its rows are not delivered.

This is the one place with that knowledge. The outbox engine has the same rules in `outbox/file.py`,
which cannot be imported here: engines do not import one another. Tests in
`replica_platform_tests/backup/test_restore.py` compare the two.

- An outbox is a file with `OUTBOX_APPLICATION_ID`.
- `meta (key, value)` holds `file_uuid`; `former`, its earlier identities, newest first and
  separated by spaces; and `mark`: rows of `record` with a greater `seq` are not delivered yet.
- `again (seq)` lists delivered rows that are to be sent again, `dead (seq)` rows that were refused.
- Numbers are given without gaps by AUTOINCREMENT; delivered rows are pruned.
"""

from contextlib import closing
from pathlib import Path

from replica_platform.backup.errors import Damaged
from replica_platform.core.sqlite import sqlite3

OUTBOX_APPLICATION_ID = 0x4F555442  # "OUTB"


def is_outbox(db: sqlite3.Connection) -> bool:
    """Return whether a database is an outbox."""
    found: tuple[int] = db.execute("pragma application_id").fetchone()
    return found == (OUTBOX_APPLICATION_ID,)


def undelivered(db: sqlite3.Connection) -> int | None:
    """Return how many rows an outbox holds as undelivered; None for any other file."""
    if not is_outbox(db):
        return None
    try:
        (resends,) = db.execute("select count(*) from again").fetchone()
        return _last_seq(db) - _delivered_through(db) + int(resends)
    except sqlite3.OperationalError:
        return None  # of a version with other tables


def identities(db: sqlite3.Connection) -> list[str]:
    """Return an outbox's identity, then its former ones; none if it has no identity."""
    try:
        meta = _meta(db)
    except sqlite3.OperationalError:
        return []
    return [meta["file_uuid"], *meta.get("former", "").split()] if "file_uuid" in meta else []


def compare_with_replaced(
    copy: sqlite3.Connection, previous: Path
) -> tuple[int | None, int | None]:
    """Compare a restored outbox, before its new identity, with the file that it replaces.

    Both are states of one file if their identities are equal; otherwise their numbers say nothing
    of each other.

    Returns:
        The rows that the copy holds as undelivered and the replaced file as delivered, which are
        delivered again; the undelivered rows that only the replaced file has. None where this is
        not known.
    """
    if not is_outbox(copy) or not previous.exists():
        return None, None
    try:
        # Immutable: no program has it open, and reading it must leave no sidecars.
        uri = f"{previous.resolve().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as replaced:
            if not is_outbox(replaced) or identities(replaced)[:1] != identities(copy)[:1]:
                return None, None
            waiting, delivered = _undelivered_seqs(copy), _delivered_through(replaced)
            still_waiting = _undelivered_seqs(replaced)
            dead = {seq for (seq,) in replaced.execute("select seq from dead")}
            again = sum(
                seq <= delivered and seq not in still_waiting and seq not in dead for seq in waiting
            )
            last = _last_seq(copy)
            return again, sum(seq > last for seq in still_waiting | dead)
    except sqlite3.DatabaseError:
        return None, None  # the replaced file is damaged; it may be why this is restored


def renew_identity(db: sqlite3.Connection) -> str | None:
    """Give an outbox a new `file_uuid` and return it; return None for any other file.

    A restored outbox continues its numbering from the past; under the old identity the target
    would take new batches for those that it has. The former identities are kept, because the
    outbox's ledger and its conflicts are looked up by them.

    Raises:
        Damaged: The file is an outbox and holds no identity.
    """
    if not is_outbox(db):
        return None
    known = identities(db)
    if not known:
        raise Damaged(
            "The backup is an outbox and has no identity (table meta, key file_uuid), so nothing "
            "was put in place; restore an older backup, or use the version that made this outbox."
        )
    from uuid import uuid4  # rarely needed, and it imports half the standard library

    renewed = str(uuid4())
    db.execute("begin immediate")
    db.executemany(
        "insert into meta (key, value) values (?, ?) "
        "on conflict (key) do update set value = excluded.value",
        [("file_uuid", renewed), ("former", " ".join(known))],
    )
    db.execute("commit")
    return renewed


def _meta(db: sqlite3.Connection) -> dict[str, str]:
    return dict(db.execute("select key, value from meta"))


def _delivered_through(db: sqlite3.Connection) -> int:
    return int(_meta(db).get("mark", 0))


def _last_seq(db: sqlite3.Connection) -> int:
    row = db.execute("select seq from sqlite_sequence where name = 'record'").fetchone()
    return 0 if row is None else int(row[0])


def _undelivered_seqs(db: sqlite3.Connection) -> set[int]:
    rows = db.execute(
        "select seq from record where seq > ? union select seq from again", [_delivered_through(db)]
    )
    return {seq for (seq,) in rows}
