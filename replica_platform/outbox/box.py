"""`Outbox`: a record is safe once `append` returns.

The calls of a worker belong here: encode a record and have it committed (see `group`). Delivery
runs in another process (see `delivery`); nothing here needs a network.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from replica_platform.outbox import file
from replica_platform.outbox.encoding import Poison, encode
from replica_platform.outbox.errors import NotStorable, OutboxClosed, SlotLocked
from replica_platform.outbox.group import Call, GroupCommit
from replica_platform.outbox.joined import JoinedOutbox

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

DEFAULT_MAX_BYTES = 8 * 1024**3
MAX_PAYLOAD_BYTES = 256 * 1024**2  # the limit of one jsonb string or array


class Outbox(GroupCommit):
    """The only writer of an outbox file.

    Threads may share it; a forked child opens its own connection. Use it as a context manager, or
    call `close`.

    Args:
        path: The outbox file, created if it does not exist.
        durability: "full" survives a power cut; "normal" survives the death of the process only
            and loses the last commits on a power cut.
        poison: Whether to "reject" a record that jsonb cannot store, or to "escape" the values
            concerned.
        max_bytes: The size in bytes to which the file may grow; None for no limit.

    Raises:
        SlotLocked: Another process writes this file.
        NetworkFileSystem: The folder is on a network file system.
        NotAnOutbox: The file belongs to another program or version.
        NotDurable: SQLite did not accept the durability.
        OutboxFull: The disk is full.
        OutboxBusy: Another process held the file's lock too long.
        OutboxDamaged: SQLite cannot read or write the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: file.Durability = "full",
        poison: Poison = "reject",
        max_bytes: int | None = DEFAULT_MAX_BYTES,
    ) -> None:
        self._poison = poison
        self._kinds: set[str] = set()  # those already checked
        self._thread: ThreadPoolExecutor | None = None  # of `aappend`
        # Kind, record and id of each `aappend` that the thread has not yet taken, and its outcome.
        self._arrived: deque[tuple[str, Mapping[str, Any], str | UUID | None, Future[str]]] = (
            deque()
        )
        super().__init__(Path(path), durability, max_bytes)

    @classmethod
    def claim(
        cls, folder: str | os.PathLike[str], name: str = "worker", **options: Any
    ) -> "Outbox":
        """Open the first outbox in `folder` that no live process writes.

        The files are `worker-1.db`, `worker-2.db` and so on, so the next worker continues the
        file of a killed one.

        Args:
            folder: Where the outbox files are.
            name: What the file names start with.
            options: Keyword arguments of `Outbox`.

        Returns:
            The open outbox.

        Raises:
            NetworkFileSystem: The folder is on a network file system.
            NotAnOutbox: A file of that name belongs to another program or version.
            NotDurable: SQLite did not accept the durability.
            OutboxFull: The disk is full.
            OutboxBusy: Another process held the file's lock too long.
            OutboxDamaged: SQLite cannot read or write the file.
        """
        slot = 1
        while True:
            try:
                return cls(Path(folder) / f"{name}-{slot}.db", **options)
            except SlotLocked:
                slot += 1

    def append(self, kind: str, record: Mapping[str, Any], id: str | UUID | None = None) -> str:
        """Save one record; it is on the disk when this returns.

        Args:
            kind: What the record is, such as "conversation": 1 to 200 printable characters.
            record: Names to values that have a JSON form.
            id: A UUID, for a call that may be repeated: the target keeps the first record with it.

        Returns:
            The record's id, a UUID.

        Raises:
            NotStorable: Postgres could not store the record; it is not saved.
            OutboxFull: The disk is full or the file has reached its cap; it is not saved.
            OutboxBusy: Another process held the file's lock too long; it is not saved.
            OutboxClosed: The outbox was closed; it is not saved.
            NotAnOutbox: The file was deleted or replaced while it was open; it is not saved.
            ForkedOutbox: The process was forked without Python's knowledge; it is not saved.
            OutboxDamaged: SQLite cannot write the file; it is not saved.
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
        """Save all of `records` in one transaction, or none.

        Args:
            kind: What the records are: 1 to 200 printable characters.
            records: Names to values that have a JSON form, one mapping for each record.
            ids: Their UUIDs, as many as there are records; random ones if left out.

        Returns:
            The records' ids, in order.

        Raises:
            NotStorable: Postgres could not store one of the records; none is saved.
            OutboxFull: The disk is full or the file has reached its cap; none is saved.
            OutboxBusy: Another process held the file's lock too long; none is saved.
            OutboxClosed: The outbox was closed; none is saved.
            NotAnOutbox: The file was deleted or replaced while it was open; none is saved.
            ForkedOutbox: The process was forked without Python's knowledge; none is saved.
            OutboxDamaged: SQLite cannot write the file; none is saved.
        """
        if ids is None:
            rows = [self._row(kind, record, None) for record in records]
        else:
            rows = [self._row(kind, record, id) for record, id in zip(records, ids, strict=True)]
        if rows:
            self._commit(rows)
        return [row[0] for row in rows]

    async def aappend(
        self, kind: str, record: Mapping[str, Any], id: str | UUID | None = None
    ) -> str:
        """Save one record like `append`, without holding up the event loop.

        One thread of this outbox saves the records of all tasks, those that arrived together with
        one commit. Do not change `record` before this returns. If the task is cancelled, the
        record may have been saved.

        Args:
            kind: What the record is: 1 to 200 printable characters.
            record: Names to values that have a JSON form.
            id: A UUID, for a call that may be repeated.

        Returns:
            The record's id, a UUID.

        Raises:
            NotStorable: Postgres could not store the record; it is not saved.
            OutboxFull: The disk is full or the file has reached its cap; it is not saved.
            OutboxBusy: Another process held the file's lock too long; it is not saved.
            OutboxClosed: The outbox was closed; it is not saved.
            NotAnOutbox: The file was deleted or replaced while it was open; it is not saved.
            ForkedOutbox: The process was forked without Python's knowledge; it is not saved.
            OutboxDamaged: SQLite cannot write the file; it is not saved.
        """
        # Imported here: a worker without an event loop never needs them.
        import asyncio
        from concurrent.futures import Future, ThreadPoolExecutor

        if self._closed:
            raise self._is_closed_error()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, f"outbox {self.path.name}")
        saved: Future[str] = Future()
        self._arrived.append((kind, record, id, saved))
        self._thread.submit(self._append_arrived)
        return await asyncio.wrap_future(saved)

    def join(self, connection: Any) -> JoinedOutbox:
        """Return an outbox whose records are part of the transactions of `connection`.

        The application keeps its tables in the outbox's file, and its own connection to it. What
        its transaction changes and the records appended in it are committed together, or not at
        all.

        Args:
            connection: A connection to the outbox's file, by the SQLite library of the outbox.

        Returns:
            An object with `append` and `append_many`.

        Raises:
            NotJoinable: The connection is of another SQLite library or to another file.
            NotDurable: The connection is less durable than the outbox.
        """
        path = Path(self._name)
        return JoinedOutbox(connection, path, self.durability, self._row, lambda: self._closed)

    def close(self) -> None:
        """Close the file and release the slot; appended records stay in the file.

        It may be called again. In a signal handler that interrupts an append of the same thread,
        it only refuses further appends; close again after that append.
        """
        self._closed = True
        if self._thread is not None:
            self._thread.shutdown(wait=False)
        super().close()

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
                f"The record takes {len(data)} bytes, jsonb stores {MAX_PAYLOAD_BYTES}; split it."
            )
        identity = _new_id() if id is None else _uuid(id)
        return identity, kind, text, hashlib.sha256(data).digest(), time.time()

    def _append_arrived(self) -> None:
        """Save the records of all waiting `aappend`; runs in their thread."""
        taken: list[tuple[str, Call, Future[str]]] = []
        deadline = time.monotonic() + file.BUSY_TIMEOUT_S
        while self._arrived:
            kind, record, id, saved = self._arrived.popleft()
            if not saved.set_running_or_notify_cancel():
                continue
            try:
                row = self._row(kind, record, id)
            except BaseException as error:
                saved.set_exception(error)
            else:
                taken.append((row[0], Call([row], deadline), saved))
        try:
            self._wait_for(*(call for _, call, _ in taken))
        except BaseException as error:
            for _, call, _ in taken:
                if not call.done:
                    call.end(error if isinstance(error, Exception) else OutboxClosed(str(error)))
        for identity, call, saved in taken:
            if call.error is None:
                saved.set_result(identity)
            else:
                saved.set_exception(call.error)

    def _after_fork_in_child(self) -> None:
        self._arrived.clear()
        self._thread = None
        super()._after_fork_in_child()


def _check_kind(kind: str) -> None:
    if not isinstance(kind, str) or not 0 < len(kind) <= 200 or not kind.isprintable():
        raise NotStorable(f"A kind is 1 to 200 printable characters, not {kind!r}.")


def _new_id() -> str:
    """Return a random UUID (version 4) as text; uuid.uuid4() takes three times as long."""
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
