"""The outbox file: its tables, how it is opened durably, and its metadata.

Appending (`box`) and delivering (`queue`, `delivery`) do not belong here.

`record` is append-only. Because SQLite has one writer, the order of `seq` is the order of
commits, so one number, `delivered_through`, separates delivered rows from pending ones. Rows at
or below it that must be sent again are listed in the table `again` (the resend queue), rows that
Postgres refused in `dead`.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote
from uuid import uuid4

from replica_platform.core.disk_space import free_bytes
from replica_platform.core.files import fsync_dir
from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox.errors import NotAnOutbox, NotDurable, translate_errors

Durability = Literal["full", "normal"]

APPLICATION_ID = 0x4F555442  # "OUTB"
SCHEMA_VERSION = 1
SYNCHRONOUS = {"normal": 1, "full": 2}
INCREMENTAL_VACUUM = 2  # SQLite's number for it
# SQLite starts the log again after 4 MiB, unless a reader keeps it from that.
LOG_BYTES = 8 * 1024**2
BUSY_TIMEOUT_S = 10.0

SCHEMA = """
create table meta (key text primary key, value text not null) without rowid;
create table record (
    seq integer primary key autoincrement, id text not null, kind text not null,
    payload text not null, sha blob not null, created_at real not null
);
create table again (seq integer primary key, attempts integer not null);
create table dead (
    seq integer primary key, sqlstate text, error text not null, attempts integer not null,
    since real not null, code_version text not null
);
create table conflict (seq integer primary key, found_at real not null, place text not null);
create table batch (
    file_uuid text not null, number integer not null, first_seq integer not null,
    last_seq integer not null, n integer not null, digest blob not null,
    delivered_at real not null, primary key (file_uuid, number)
) without rowid;
create index batch_by_seq on batch (first_seq, delivered_at);
"""


INSERT = "insert into record (id, kind, payload, sha, created_at) values (?, ?, ?, ?, ?)"


class Row(NamedTuple):  # a dataclass would add a sixth to what a worker's import takes
    """One record of the file."""

    seq: int
    id: str
    kind: str
    payload: str
    sha: bytes
    created_at: float


def create_or_open(
    path: Path, durability: Durability = "full", max_bytes: int | None = None
) -> sqlite3.Connection:
    """Open the file for writing; create it if it does not exist.

    Args:
        path: The outbox file.
        durability: SQLite's `synchronous` for this connection.
        max_bytes: The size in bytes to which this connection may let the file grow.

    Raises:
        NotAnOutbox: The file belongs to another program or version.
        NotDurable: SQLite did not accept the durability.
        OutboxFull: The disk is full.
        OutboxBusy: Another process held the file's lock too long.
        OutboxDamaged: SQLite cannot read or write the file.
    """
    with translate_errors(path, "open"):
        is_new = not path.exists()
        connection = _connect(path, "rwc", durability)
        try:
            _make_tables(connection, path)
            if max_bytes is not None:
                (page_bytes,) = connection.execute("pragma page_size").fetchone()
                connection.execute(f"pragma max_page_count = {max(1, max_bytes // page_bytes)}")
            # Noted for drains and `doctor`, which cannot read them from the worker's connection.
            for key, value in (("max_bytes", str(max_bytes or "")), ("durability", durability)):
                if get_meta(connection, key) != value:
                    set_meta(connection, key, value)
            if is_new:
                fsync_dir(path.parent)
        except BaseException:
            connection.close()
            raise
        return connection


def open_existing(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open an existing outbox; never create one.

    Raises:
        NotAnOutbox: The file does not exist, or belongs to another program or version.
        OutboxBusy: Another process held the file's lock too long.
        OutboxDamaged: SQLite cannot read or write the file.
    """
    if not path.exists():
        raise NotAnOutbox(f"There is no outbox at {path}; check its name and its disk.")
    with translate_errors(path, "open"):
        connection = _connect(path, "ro" if read_only else "rw", "full")
        try:
            _check_is_outbox(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection


def prepare_for_delivery(connection: sqlite3.Connection) -> None:
    """Add to a file of an earlier version what a drain needs; the worker may have it open.

    Only additions that the earlier version ignores, so the version of the tables stays.
    """
    indexes = connection.execute("select count(*) from sqlite_schema where name = 'batch_by_seq'")
    if indexes.fetchone() == (0,):
        with writing(connection):
            connection.execute(
                "create index if not exists batch_by_seq on batch (first_seq, delivered_at)"
            )


def is_outbox(path: Path) -> bool:
    """Return False for a readable database of another application, True otherwise.

    A file that cannot be read counts as an outbox, so that reports name it.
    """
    try:
        with closing(_connect(path, "ro", "full")) as connection:
            return _versions(connection)[0] == APPLICATION_ID
    except sqlite3.Error:
        return True


def log_path(path: Path) -> Path:
    """Return the path of SQLite's write-ahead log of a file."""
    return path.with_name(path.name + "-wal")


def log_refusal(connection: sqlite3.Connection, path: Path, max_bytes: int | None) -> str | None:
    """Return why no record may be added to the log; None if it is small or can be started again.

    A forgotten reader keeps SQLite from copying the log into the file, so that the log grows. It
    may grow to the file's cap, and while the disk has space for that copy: without it, neither the
    worker nor a drain could write any more.
    """
    log_bytes = _size(log_path(path))
    if log_bytes <= LOG_BYTES:
        return None
    (pages,) = connection.execute("pragma page_count").fetchone()
    (page_bytes,) = connection.execute("pragma page_size").fetchone()
    file_bytes = _size(path)
    missing_bytes = pages * page_bytes - file_bytes
    is_too_large = max_bytes is not None and file_bytes + log_bytes > max_bytes
    if not is_too_large and free_bytes(path.parent) > missing_bytes + LOG_BYTES:
        return None
    connection.execute("pragma wal_checkpoint(truncate)").fetchall()
    if _size(log_path(path)) <= LOG_BYTES:
        return None
    return (
        f"a reader that began long ago keeps {log_bytes} bytes in its log; end the process that "
        "reads the file"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the block in a transaction that takes the write lock at its start.

    SQLite fails a read that is upgraded to a write at once, whatever the busy timeout.
    """
    try:
        # Inside: a signal handler may raise as soon as this statement's wait for the lock ends.
        connection.execute("begin immediate")
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise


def get_meta(connection: sqlite3.Connection, key: str) -> str | None:
    """Return the value stored under `key`; None if there is none."""
    row = connection.execute("select value from meta where key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def set_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    """Store `value` under `key`."""
    connection.execute(
        "insert into meta values (?, ?) on conflict (key) do update set value = excluded.value",
        (key, value),
    )


def file_uuid(connection: sqlite3.Connection) -> str:
    """Return the file's identity, under which the target keeps its ledger."""
    return get_meta(connection, "file_uuid") or ""


def identities(connection: sqlite3.Connection) -> list[str]:
    """Return the file's identity and those it had before it was restored."""
    now, former = get_meta(connection, "file_uuid"), get_meta(connection, "former")
    return ([now] if now else []) + (former.split() if former else [])


def delivered_through(connection: sqlite3.Connection) -> int:
    """Return the highest `seq` that was delivered or set aside; all rows above it are pending."""
    return int(get_meta(connection, "mark") or 0)


def set_delivered_through(connection: sqlite3.Connection, seq: int) -> None:
    """Raise `delivered_through` to `seq`; never lower it, as another drain may be further."""
    set_meta(connection, "mark", str(max(delivered_through(connection), seq)))


def last_seq(connection: sqlite3.Connection) -> int:
    """Return the highest `seq` ever assigned, whether or not its row was pruned."""
    row = connection.execute("select seq from sqlite_sequence where name = 'record'").fetchone()
    return 0 if row is None else int(row[0])


def pending(connection: sqlite3.Connection) -> int:
    """Return how many rows wait: those above `delivered_through`, and the resend queue.

    `seq` has no gaps above `delivered_through`.
    """
    (resends,) = connection.execute("select count(*) from again").fetchone()
    return last_seq(connection) - delivered_through(connection) + int(resends)


def renew(connection: sqlite3.Connection) -> str:
    """Give the file a new identity, as a restored copy needs, and return it.

    `replica restore-backup` applies the same rule to a file with our `APPLICATION_ID`, in
    `backup.child.restored_copy`: engines do not import one another. Change both together.
    """
    fresh = str(uuid4())
    if former := identities(connection):
        set_meta(connection, "former", " ".join(former))
    set_meta(connection, "file_uuid", fresh)
    return fresh


def _connect(path: Path, mode: str, durability: Durability) -> sqlite3.Connection:
    connection: sqlite3.Connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        if mode != "ro":
            _make_durable(connection, path, durability)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_durable(connection: sqlite3.Connection, path: Path, durability: Durability) -> None:
    if connection.execute("pragma page_count").fetchone() == (0,):  # later it would be a write
        connection.execute("pragma auto_vacuum = incremental")
    (journal,) = connection.execute("pragma journal_mode = wal").fetchone()
    connection.execute(f"pragma journal_size_limit = {LOG_BYTES}")
    # Set on each connection, as the file does not store it. NORMAL lost rows in 54 of 60 power
    # cuts.
    connection.execute(f"pragma synchronous = {durability}")
    (synchronous,) = connection.execute("pragma synchronous").fetchone()
    if journal != "wal" or synchronous != SYNCHRONOUS[durability]:
        raise NotDurable(
            f"{path} has journal_mode={journal} and synchronous={synchronous} instead of wal and "
            f"{SYNCHRONOUS[durability]}; use a SQLite library that supports both."
        )


def _make_tables(connection: sqlite3.Connection, path: Path) -> None:
    if _versions(connection) == (APPLICATION_ID, SCHEMA_VERSION):
        return
    with writing(connection):
        (tables,) = connection.execute("select count(*) from sqlite_schema").fetchone()
        if tables == 0:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            set_meta(connection, "created_at", str(time.time()))
            set_meta(connection, "mark", "0")
            renew(connection)
            connection.execute(f"pragma application_id = {APPLICATION_ID}")
            connection.execute(f"pragma user_version = {SCHEMA_VERSION}")
    _check_is_outbox(connection, path)


def _check_is_outbox(connection: sqlite3.Connection, path: Path) -> None:
    application, version = _versions(connection)
    if application != APPLICATION_ID:
        raise NotAnOutbox(f"{path} is a database but not an outbox; give another path.")
    if version != SCHEMA_VERSION:
        raise NotAnOutbox(
            f"{path} has version {version} of the outbox's tables, this program supports "
            f"version {SCHEMA_VERSION}; use the version of the program that made the file."
        )


def _versions(connection: sqlite3.Connection) -> tuple[int, int]:
    (application,) = connection.execute("pragma application_id").fetchone()
    (version,) = connection.execute("pragma user_version").fetchone()
    return int(application), int(version)
