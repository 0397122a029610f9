"""`Outbox`: a record is safe once `append` returns.

The worker's side belongs here: encode, commit, answer. Delivery is another process's work
(see `draining`); nothing here needs a network.
"""

import contextlib
import hashlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from uuid import UUID

from replica_platform.core.sqlite import sqlite3
from replica_platform.outbox import file
from replica_platform.outbox.encoding import encode
from replica_platform.outbox.errors import (
    ForkedOutbox,
    NotStorable,
    OutboxBusy,
    OutboxClosed,
    SlotLocked,
)
from replica_platform.outbox.reserve import keep_reserve
from replica_platform.outbox.slots import lock_slot, refuse_network

DEFAULT_MAX_BYTES = 8 * 1024**3
MAX_PAYLOAD_BYTES = 256 * 1024**2  # what one jsonb string or array may hold
INSERT = "insert into record (id, kind, payload, sha, created_at) values (?, ?, ?, ?, ?)"
# A group of threads' rows goes as one statement: with a statement a row, each would let go of the
# interpreter's lock and wait for it again, behind all the threads that want to append.
ROWS_A_STATEMENT = 64

_open_boxes: "weakref.WeakSet[Outbox]" = weakref.WeakSet()


class _Ticket:
    """The rows of one caller, waiting to be committed by whoever holds the pen."""

    __slots__ = ("_sleep", "done", "error", "rows")

    def __init__(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self.rows = rows
        self.done = False
        self.error: Exception | None = None
        self._sleep = threading.Lock()
        self._sleep.acquire()

    def wait(self) -> None:
        self._sleep.acquire()

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # awake already
            self._sleep.release()


class Outbox:
    """The one writer of an outbox file. Threads may share it; a fork gets a connection of its own.

    `durability="full"` (the default) survives a power cut; `"normal"` survives the death of the
    process only and loses the last commits on a power cut. `poison="escape"` spells out what
    jsonb cannot hold instead of refusing it. `max_bytes` caps the file.
    Errors: `SlotLocked`, `NetworkFileSystem`, `NotAnOutbox`, `NotDurable`, `OutboxFull`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: file.Durability = "full",
        poison: Literal["reject", "escape"] = "reject",
        max_bytes: int | None = DEFAULT_MAX_BYTES,
    ) -> None:
        self.path = Path(path)
        self.durability = durability
        self._poison = poison
        self._max_bytes = max_bytes
        self._pen = threading.Lock()
        self._waiting: deque[_Ticket] = deque()
        self._writer: int | None = None  # the thread that holds the pen
        self._connection: sqlite3.Connection | None = None
        self._process = os.getpid()
        self._closed = False
        self._kinds: set[str] = set()  # those that were looked at
        if durability not in file.SYNCHRONOUS:
            raise ValueError(f"durability is 'full' or 'normal', not {durability!r}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        refuse_network(self.path.parent)
        self._slot = lock_slot(self.path)
        try:
            self._open()
            keep_reserve(self.path)
        except BaseException:
            os.close(self._slot)
            raise
        _open_boxes.add(self)

    @classmethod
    def claim(
        cls, folder: str | os.PathLike[str], name: str = "worker", **options: Any
    ) -> "Outbox":
        """The first outbox in `folder` that no live process writes: `worker-1.db`, `worker-2.db` …

        What a killed worker left is so continued by the next one.
        """
        slot = 1
        while True:
            try:
                return cls(Path(folder) / f"{name}-{slot}.db", **options)
            except SlotLocked:
                slot += 1

    def append(self, kind: str, record: Mapping[str, Any], id: str | UUID | None = None) -> str:
        """Save one record; when this returns, it is on the disk. Returns its id, a UUID.

        Give `id` where a repeated call must be one record: the target keeps the first.
        Errors: `NotStorable`, `OutboxFull`, `OutboxBusy`, `OutboxClosed`; then it is not saved.
        """
        row = self._row(kind, record, id)
        self._commit([row])
        identity: str = row[0]
        return identity

    def append_many(
        self,
        kind: str,
        records: Iterable[Mapping[str, Any]],
        ids: Iterable[str | UUID] | None = None,
    ) -> list[str]:
        """Save all of `records` in one transaction, or none; returns their ids, in order."""
        if ids is None:
            rows = [self._row(kind, record, None) for record in records]
        else:
            rows = [self._row(kind, record, id) for record, id in zip(records, ids, strict=True)]
        if rows:
            self._commit(rows)
        return [row[0] for row in rows]

    def close(self) -> None:
        """Let go of the file and the slot; what was appended stays. Twice is fine."""
        # A thread that a signal ended may have kept the pen: the process's end then does the rest.
        if not self._pen.acquire(timeout=file.BUSY_TIMEOUT_S):
            self._closed = True
            return
        try:
            if not self._closed:
                self._closed = True
                self._let_go()
                os.close(self._slot)
        finally:
            self._put_down_pen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _row(self, kind: str, record: Mapping[str, Any], id: str | UUID | None) -> tuple[Any, ...]:
        if kind not in self._kinds:
            _check_kind(kind)
            self._kinds.add(kind)
        text, data = encode(record, self._poison)
        if len(data) > MAX_PAYLOAD_BYTES:
            raise NotStorable(
                f"The record takes {len(data)} bytes, jsonb holds {MAX_PAYLOAD_BYTES}; split it."
            )
        identity = _new_id() if id is None else _uuid(id)
        return identity, kind, text, hashlib.sha256(data).digest(), time.time()

    def _commit(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Group commit: who holds the pen writes for all who wait, in one transaction."""
        if not self._waiting and self._pen.acquire(blocking=False):
            try:
                self._write(rows)
            finally:
                self._put_down_pen()
            return
        if self._writer == threading.get_ident():
            raise OutboxBusy(
                f"{self.path}: append was called by a signal handler while its own thread was "
                "appending; set a flag in the handler and append after it. The record is not saved."
            )
        ticket = _Ticket(rows)
        self._waiting.append(ticket)
        try:
            while not ticket.done:
                self._write_or_wait(ticket)
        except BaseException:
            # A signal ended this thread's wait: what was to wake it must wake another.
            with contextlib.suppress(ValueError):
                self._waiting.remove(ticket)
            self._wake_one()
            raise
        if ticket.error is not None:
            raise ticket.error

    def _write_or_wait(self, ticket: _Ticket) -> None:
        if not self._pen.acquire(blocking=False):
            # Asleep on a lock of its own: all through one lock was half as fast.
            ticket.wait()
            return
        try:
            if not ticket.done:
                self._write_waiting(ticket)
        finally:
            self._put_down_pen()

    def _put_down_pen(self) -> None:
        """Let go of the pen and wake somebody who may have come while it was held."""
        self._writer = None
        self._pen.release()
        self._wake_one()

    def _wake_one(self) -> None:
        if self._waiting:
            with contextlib.suppress(IndexError):  # somebody took it in between
                self._waiting[0].wake()

    def _write_waiting(self, mine: _Ticket) -> None:
        group = [mine]
        while self._waiting:
            other = self._waiting.popleft()
            if other is not mine:
                group.append(other)
        try:
            self._write_group(group)
        finally:
            for ticket in group:
                # Interrupted, this thread leaves the others' rows to the others.
                if not ticket.done and ticket is not mine:
                    self._waiting.append(ticket)
                ticket.wake()

    def _write_group(self, group: Sequence[_Ticket]) -> None:
        try:
            self._write([row for ticket in group for row in ticket.rows])
        except Exception as error:
            if len(group) == 1:
                group[0].error = error
            else:
                # One caller's huge record must not refuse the others' small ones.
                self._write_one_by_one(group)
        for ticket in group:
            ticket.done = True

    def _write_one_by_one(self, group: Sequence[_Ticket]) -> None:
        for ticket in group:
            try:
                self._write(ticket.rows)
            except Exception as error:
                ticket.error = error

    def _write(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self._writer = threading.get_ident()
        connection = self._connection
        if connection is None or self._closed:
            connection = self._open()
        if self._process != os.getpid():
            raise ForkedOutbox(
                f"{self.path} was open when this process was forked by something that did not "
                "tell Python; open the outbox after the fork. The record is not saved."
            )
        try:
            if len(rows) <= ROWS_A_STATEMENT:
                values = [value for row in rows for value in row]
                connection.execute(INSERT + ", (?, ?, ?, ?, ?)" * (len(rows) - 1), values)
            else:
                with file.writing(connection):
                    connection.executemany(INSERT, rows)
        except sqlite3.Error as error:
            words = file.in_words(error, self.path, "append; the record is not saved")
            raise words from error

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise OutboxClosed(
                f"{self.path} was closed; open a new Outbox. The record is not saved."
            )
        self._process = os.getpid()
        self._connection = file.create_or_open(self.path, self.durability, self._max_bytes)
        return self._connection

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _before_fork(self) -> None:
        """Close: a child's SQLite would believe that it holds the parent's locks.

        Then the parent's last close may delete a WAL the child still writes to.
        """
        self._pen.acquire()
        self._let_go()

    def _after_fork_in_child(self) -> None:
        # What other threads were about to write, the parent writes.
        self._waiting.clear()
        self._put_down_pen()


def _check_kind(kind: str) -> None:
    if not isinstance(kind, str) or not 0 < len(kind) <= 200 or not kind.isprintable():
        raise NotStorable(f"A kind is 1 to 200 printable characters, not {kind!r}.")


def _new_id() -> str:
    """A random UUID (version 4) as text; uuid.uuid4() takes three times as long."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _uuid(id: str | UUID) -> str:
    try:
        return str(id if isinstance(id, UUID) else UUID(id))
    except (ValueError, AttributeError, TypeError):
        raise NotStorable(
            f"The id {id!r} is not a UUID; make one with uuid.uuid4(), or leave it out."
        ) from None


_held: list[Outbox] = []


def _before_fork() -> None:
    for box in list(_open_boxes):
        box._before_fork()
        _held.append(box)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()._put_down_pen()


def _after_fork_in_child() -> None:
    while _held:
        _held.pop()._after_fork_in_child()


with contextlib.suppress(AttributeError):  # not on systems that cannot fork
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
