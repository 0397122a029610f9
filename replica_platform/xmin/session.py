"""Sessions on both servers, with every setting pinned that changes a value or ends a session.

How a session is set up belongs here; what it is used for does not. A sync keeps settings, locks
and temporary tables in its sessions, so a connection pooler that shares them between clients is
refused before anything is set.

A session that is idle in a transaction keeps the server from removing old rows. The server ends one
whose client is silent; a heartbeat keeps those that a living sync still needs.
"""

import logging
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

import psycopg
from psycopg import pq

from replica_platform.core.postgres import DeadlinePassed, connect, deadline, one_value
from replica_platform.xmin.errors import LOCK_TIMEOUT_S, CannotSync, Side, translate_errors

log = logging.getLogger(__name__)

# A client that has vanished behind a proxy or was stopped still acknowledges packets: only silence
# in the protocol tells. An administrator's shorter timeout is kept where heartbeats come in time.
IDLE_TIMEOUT_S = 600
BEAT_S = 60
CLOSE_TIMEOUT_S = 5

_PINNED = {
    "client_encoding": "UTF8",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "xmloption": "content",
    "lock_timeout": f"{LOCK_TIMEOUT_S}s",
    "statement_timeout": "0",
    "idle_session_timeout": "0",
    # The kernel would notice after two hours that the client's host is gone.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "transaction_timeout": "0",
    "default_transaction_read_only": "off",
    # Rows hidden by a policy would look deleted: an error is better than a silent filter.
    "row_security": "off",
    "jit": "off",
    # Notices such as "does not exist, skipping" tell the user nothing.
    "client_min_messages": "warning",
}
_IDLE_TIMEOUT = "idle_in_transaction_session_timeout"
# With the empty path, format_type spells every type that is not built in with its schema.
_PINNED_ON_SOURCE = {"search_path": ""}
# A setting that the server's version does not have is skipped.
_PIN = """
select count(set_config(s.name, s.value, false)), repeat(' ', %s)
from unnest(%s::text[], %s::text[]) s(name, value) where current_setting(s.name, true) is not null
"""
# libpq reads at most 16 kB at a time from the socket until a message was larger. One such answer
# saves half of the switches between processes (2,000,000 rows by two streams: 1.49 s to 1.37 s).
_WIDE_ANSWER_BYTES = 256 * 1024
# Another client may take a session in the moment between two looks: one look does not prove enough.
_LOOKS = 12
# A pool in session mode that has no session left answers only when another client disconnects.
_POOL_WAIT_S = 5


def open_source(dsn: str) -> psycopg.Connection:
    """Open a session on the source, in autocommit mode.

    Raises:
        CannotConnect: The source does not answer.
        CannotSync: A connection pooler shares its sessions between clients.
    """
    return _open(dsn, "source", {**_PINNED, **_PINNED_ON_SOURCE}, _WIDE_ANSWER_BYTES)


def open_target(dsn: str) -> psycopg.Connection:
    """Open a session on the target, in autocommit mode.

    Raises:
        CannotConnect: The target does not answer.
        CannotSync: A connection pooler shares its sessions between clients.
    """
    return _open(dsn, "target", _PINNED, 0)


class KeptSessions:
    """Sessions that a later sync of the same context uses again.

    A session that was closed is kept apart until `turn`, so that none has two owners in one sync.
    """

    def __init__(self) -> None:
        self._closed: list[tuple[tuple[Side, str], psycopg.Connection]] = []
        self._free: list[tuple[tuple[Side, str], psycopg.Connection]] = []
        self._names: weakref.WeakKeyDictionary[psycopg.Connection, tuple[Side, str]] = (
            weakref.WeakKeyDictionary()
        )

    def turn(self) -> None:
        """Let the sessions that were closed be used again."""
        self._free += self._closed
        self._closed = []

    def take(self, side: Side, dsn: str) -> psycopg.Connection | None:
        """Return a session that still answers, as new; None where there is none."""
        for one in [one for one in self._free if one[0] == (side, dsn)]:
            self._free.remove(one)
            # What the last sync has set, locked, prepared or left over ends here.
            try:
                one[1].execute("discard all")
            except psycopg.Error:
                one[1].close()
            else:
                return one[1]
        return None

    def add(self, side: Side, dsn: str, connection: psycopg.Connection) -> None:
        """Remember a session that is now in use."""
        connection.prepare_threshold = None  # DISCARD ALL would drop what psycopg has prepared
        self._names[connection] = (side, dsn)

    def keep(self, connection: psycopg.Connection) -> bool:
        """Keep a session instead of closing it; return False for one that is not to be kept."""
        name = self._names.pop(connection, None)
        if name is None:
            return any(connection is one for _, one in self._closed)
        try:
            connection.rollback()
            # Now: nobody shall wait for what it has locked.
            connection.execute("select pg_advisory_unlock_all()")
        except psycopg.Error:
            return False
        self._closed.append((name, connection))
        return True

    def close(self) -> None:
        """Close all."""
        for _, connection in [*self._closed, *self._free]:
            connection.close()


_kept: ContextVar[KeptSessions | None] = ContextVar("kept sessions", default=None)


@contextmanager
def keeping_sessions() -> Iterator[KeptSessions]:
    """Use the sessions of the block's syncs again; at its end they are closed."""
    sessions = KeptSessions()
    token = _kept.set(sessions)
    try:
        yield sessions
    finally:
        _kept.reset(token)
        sessions.close()


def _open(dsn: str, side: Side, settings: dict[str, str], answer_bytes: int) -> psycopg.Connection:
    kept = _kept.get()
    connection = kept.take(side, dsn) if kept else None
    if connection is None:
        connection = connect(dsn, application_name="replica_platform xmin", autocommit=True)
    if kept:
        kept.add(side, dsn, connection)
    try:
        with translate_errors(side, "its tables"):
            if _behind_pooler(connection):
                _refuse_shared_session(connection, dsn, side)
            settings = settings | _idle_timeout(connection, side)
            if connection.info.host.startswith("/"):  # a unix socket
                settings = {k: v for k, v in settings.items() if not k.startswith("tcp_")}
            connection.execute(_PIN, [answer_bytes, list(settings), list(settings.values())])
        _heartbeat.add(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def end_session(connection: psycopg.Connection) -> None:
    """End a session's transaction, wait until the server has, and close the session."""
    with suppress(psycopg.Error):  # a lost connection has ended it
        connection.rollback()
    close_session(connection)


def close_session(connection: psycopg.Connection) -> None:
    """Close a session that may be in a transaction, but not while a heartbeat uses it."""
    kept = _kept.get()
    if kept and not connection.closed and kept.keep(connection):
        return
    # A server that fell silent in between keeps the lock; the session then ends with the process.
    if connection.lock.acquire(timeout=CLOSE_TIMEOUT_S):
        try:
            connection.close()
        finally:
            connection.lock.release()


def _idle_timeout(connection: psycopg.Connection, side: Side) -> dict[str, str]:
    """Return the timeout of a session that is idle in a transaction."""
    query = "select setting::bigint from pg_settings where name = %s"
    theirs = int(one_value(connection.execute(query, [_IDLE_TIMEOUT])))
    ours = int(IDLE_TIMEOUT_S * 1000)
    if 3 * BEAT_S * 1000 <= theirs < ours:
        ours = theirs
    elif 0 < theirs < ours:
        log.info(
            "%s of the %s is %s ms; a sync waits on one server while it uses the other, so its "
            "sessions set %s ms", _IDLE_TIMEOUT, side, theirs, ours,
        )  # fmt: skip
    return {_IDLE_TIMEOUT: f"{ours}ms"}


class _Heartbeat:
    """A thread that sends an empty query over each session that is idle in a transaction."""

    def __init__(self) -> None:
        self._sessions: weakref.WeakSet[psycopg.Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._added = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, session: psycopg.Connection) -> None:
        with self._lock:
            self._sessions.add(session)
            self._added.set()  # so that the next beat is BEAT_S from now
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, daemon=True, name="xmin heartbeat"
                )
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._added.wait(BEAT_S)
            self._added.clear()
            with self._lock:
                sessions = [session for session in self._sessions if not session.closed]
                if not sessions:
                    self._thread = None
                    return
            for session in sessions:
                _beat(session)


def _beat(session: psycopg.Connection) -> None:
    if not session.lock.acquire(blocking=False):
        return  # in use, so not idle
    try:
        idle = session.pgconn.transaction_status == pq.TransactionStatus.INTRANS
        with suppress(psycopg.Error):  # a lost connection: the next use raises the error
            if idle:
                session.pgconn.exec_(b"")
    finally:
        session.lock.release()


def _new_heartbeat() -> None:
    # A forked child has no thread, and must not speak over its parent's connections.
    global _heartbeat
    _heartbeat = _Heartbeat()


_heartbeat = _Heartbeat()
os.register_at_fork(after_in_child=_new_heartbeat)


def _behind_pooler(connection: psycopg.Connection) -> bool:
    """Return whether something between here and the server made up the session's number."""
    return _backend(connection) != connection.info.backend_pid


def _refuse_shared_session(connection: psycopg.Connection, dsn: str, side: Side) -> None:
    """Refuse a pooler that does not keep a server session for one client.

    Raises:
        CannotSync: Other clients use the session, or the pooler has none left to find that out.
    """
    try:
        shared = _is_shared(connection, dsn)
    except (psycopg.errors.ProtocolViolation, DeadlinePassed):  # statement mode has no transactions
        shared = True
    if shared:
        raise CannotSync(
            f"The {side} is reached through a connection pooler that shares its sessions between "
            "clients, such as pgbouncer in transaction mode, or that has no session left. The "
            "settings and locks of a sync would reach the application; nothing was set. Give the "
            "address of the server itself, or of a pool in session mode with free sessions."
        )


def _is_shared(connection: psycopg.Connection, dsn: str) -> bool:
    """Return whether another client can get the session while this one is connected.

    The other client keeps what it gets for the length of a transaction. So either it gets the
    session that this one had, or this one comes back to another; in session mode neither happens.
    """
    mine = _backend(connection)
    with connect(dsn, application_name="replica_platform xmin", autocommit=True) as other:
        for _ in range(_LOOKS):
            with deadline(other, _POOL_WAIT_S):
                other.execute("begin", prepare=False)
                theirs = _backend(other)
            if theirs == mine:
                return True
            with deadline(connection, _POOL_WAIT_S):
                now = _backend(connection)
            other.execute("rollback", prepare=False)
            if now != mine:
                return True
    return False


def _backend(connection: psycopg.Connection) -> int:
    # Not prepared, which would leave a statement in a shared session.
    return int(one_value(connection.execute("select pg_backend_pid()", prepare=False)))
