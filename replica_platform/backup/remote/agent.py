"""The program that runs on the other host during a pull, in a python3 without this package.

It is sent over the connection after `child/contents.py` and `child/file_copy.py`, into the same
namespace. So it may use
only the standard library and the syntax of Python 3.7, and must not import this package: what it
needs of it stands here a second time. It reads the database and never writes to it.

A request is a line of JSON. Whatever the agent sends is a frame: a line with the number of bytes,
then the bytes. An answer is one frame of JSON, a file is many. An empty frame says that the agent
still works, so that its caller can tell long work from a host that fell silent.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replica_platform.backup.child.contents import (
        count_tables,
        describe_table,
        digest_blocks,
        pack,
        range_digests,
        rows_between,
        table_names,
        unpack,
    )
    from replica_platform.backup.child.file_copy import (
        JournalModeChanged,
        copy_in_steps,
        copy_with_empty_wal,
    )

FRAME_BYTES = 1 << 18
BUSY_WAIT_S = 10
HEARTBEAT_S = 10
# A page ends with the row that passes either limit.
PAGE_ROWS = 2000
PAGE_BYTES = 1 << 20
TEMPORARY = ".replica-pull-"
SENDING = threading.Lock()


class Agent:
    """The database that a connection asks about; each public method is a request."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.snapshot: Path | None = None
        if not self.path.is_file():
            raise OSError(f"there is no file {path}")
        self.path = self.path.resolve()
        self.db = self._open(self.path)

    def _open(self, path: Path) -> sqlite3.Connection:
        # Never immutable: that would read past the WAL of a file that is written to.
        uri = path.as_uri() + "?mode=ro"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_WAIT_S)
        db.execute("select count(*) from sqlite_master").fetchone()
        return db

    def describe_file(self) -> dict[str, Any]:
        """Return the file's size and mode, and the versions of what reads it."""
        wal = self.path.with_name(self.path.name + "-wal")
        return {
            "bytes": self.path.stat().st_size,
            "wal_bytes": wal.stat().st_size if wal.exists() else 0,
            "journal_mode": self.db.execute("pragma journal_mode").fetchone()[0],
            "sqlite": sqlite3.sqlite_version,
            "python": ".".join(str(part) for part in sys.version_info[:3]),
        }

    def count_tables(self) -> list[Any]:
        """Return the rows of each table and the newest values."""
        return list(count_tables(self.db))

    def read_schema(self) -> dict[str, Any]:
        """Return the statements that made the database, its settings, its tables and keys."""
        made = self.db.execute("select type, name, tbl_name, sql from sqlite_master order by rowid")
        settings = ("page_size", "encoding", "auto_vacuum", "user_version", "application_id")
        names = table_names(self.db)
        sequences = "select name from sqlite_master where name = 'sqlite_sequence'"
        names += [name for (name,) in self.db.execute(sequences)]
        statements = [list(row) for row in made]
        virtual = [row[1] for row in statements if str(row[3]).lower().startswith("create virtual")]
        return {
            "statements": statements,
            "settings": {n: self.db.execute("pragma " + n).fetchone()[0] for n in settings},
            "virtual": virtual,
            "tables": [] if virtual else [describe_table(self.db, name) for name in names],
        }

    def has_space(self) -> bool:
        """Return whether this host has space for a snapshot."""
        return self._shortage(self._folder()) is None

    def data_version(self) -> int:
        """Return a number that changes with each commit of another connection."""
        return int(self.db.execute("pragma data_version").fetchone()[0])

    def read_rows(self, table: Any, after: Any, until: Any) -> dict[str, Any]:
        """Return a page of rows, and whether it is the last one of the range."""
        rows, size = [], 0
        for row in rows_between(self.db, table, after, until, PAGE_ROWS):
            rows.append(row)
            size += sum(len(value) for value in row if isinstance(value, (str, bytes)))
            if size >= PAGE_BYTES or len(rows) == PAGE_ROWS:
                return {"rows": rows, "is_last": False}
        return {"rows": rows, "is_last": True}

    def digest_ranges(self, table: Any, bounds: Any) -> list[Any]:
        """Return count and digest of the rows between each two bounds."""
        return range_digests(self.db, table, bounds)

    def take_snapshot(self) -> dict[str, Any]:
        """Copy the file on this host as a backup would; return the copy's size and path.

        From then on the other requests are answered from the copy.
        """
        folder = self._folder()
        self._remove_abandoned(folder)
        shortage = self._shortage(folder)
        if shortage:
            raise OSError(shortage)
        prefix = TEMPORARY + str(os.getpid()) + "-"
        handle, copy = tempfile.mkstemp(prefix=prefix, suffix=".db", dir=str(folder))
        os.close(handle)
        self.snapshot = Path(copy)
        # Opened before SQLite opens it again, and closed after that: a close drops our locks.
        self.db.close()
        live = os.open(str(self.path), os.O_RDONLY)
        try:
            self.db = self._open(self.path)
            if not self._copy_bytes(live, self.snapshot):
                self._copy_by_sqlite(copy)
            self.db.close()
        finally:
            os.close(live)
        self.db = self._open(self.snapshot)
        return {"bytes": self.snapshot.stat().st_size, "path": copy}

    def _copy_bytes(self, live: int, copy: Path) -> bool:
        wal = self.path.with_name(self.path.name + "-wal")
        if self.db.execute("pragma journal_mode").fetchone()[0] == "wal":
            return copy_with_empty_wal(self.db, live, wal, copy)
        try:
            copy_in_steps(self.db, live, copy)
        except JournalModeChanged:
            return False
        return True

    def _copy_by_sqlite(self, copy: str) -> None:
        quiet = sqlite3.connect(copy, isolation_level=None)
        quiet.execute("pragma journal_mode=off")
        quiet.execute("pragma synchronous=off")
        self.db.backup(quiet, pages=-1)
        quiet.close()
        quiet = sqlite3.connect(copy, isolation_level=None)
        quiet.execute("pragma journal_mode=delete")
        quiet.close()

    def digest_snapshot(self) -> str:
        """Return the SHA-256 of the snapshot."""
        assert self.snapshot
        digest = hashlib.sha256()
        with self.snapshot.open("rb") as file:
            for block in iter(lambda: file.read(FRAME_BYTES), b""):
                digest.update(block)
        return digest.hexdigest()

    def digest_blocks(self, size: int) -> list[str]:
        """Return the digest of each block of the snapshot."""
        assert self.snapshot
        with self.snapshot.open("rb", 0) as file:
            return digest_blocks(file, size)

    def send_blocks(self, block_bytes: int, numbers: list[int]) -> None:
        """Send blocks of the snapshot, each as a frame, before this request's answer."""
        assert self.snapshot
        with self.snapshot.open("rb", 0) as file:
            for number in numbers:
                file.seek(number * block_bytes)
                send(file.read(block_bytes))

    def send_snapshot(self) -> None:
        """Send the snapshot's bytes before this request's answer."""
        assert self.snapshot
        with self.snapshot.open("rb") as file:
            for block in iter(lambda: file.read(FRAME_BYTES), b""):
                send(block)

    def close(self) -> None:
        """Remove the snapshot."""
        self.db.close()
        if self.snapshot:
            self.snapshot.unlink()

    def _folder(self) -> Path:
        folder = self.path.parent
        return folder if os.access(str(folder), os.W_OK) else Path(tempfile.gettempdir())

    def _shortage(self, folder: Path) -> str | None:
        disk = os.statvfs(str(folder))
        needed = self.db.execute("pragma page_count").fetchone()[0]
        needed *= self.db.execute("pragma page_size").fetchone()[0]
        if disk.f_bavail * disk.f_frsize < needed:
            return f"a copy needs {needed} bytes and {folder} on that host has less free"
        return None

    def _remove_abandoned(self, folder: Path) -> None:
        for copy in folder.glob(TEMPORARY + "*"):
            pid = copy.name[len(TEMPORARY) :].split("-")[0]
            if not Path("/proc", pid).exists():
                copy.unlink()


def send(content: bytes) -> None:
    """Write one frame to the standard output."""
    frame = memoryview(b"%d\n%s" % (len(content), content))
    with SENDING:
        # Not by sys.stdout: a thread that waits in it aborts the interpreter's end.
        while frame:
            frame = frame[os.write(1, frame) :]


def send_heartbeats() -> None:
    """Send an empty frame from time to time, until the connection ends."""
    try:
        while True:
            time.sleep(HEARTBEAT_S)
            send(b"")
    except OSError:
        pass  # the connection has ended


def serve(path: str) -> None:
    """Answer requests until the input ends."""
    threading.Thread(target=send_heartbeats, daemon=True).start()
    agent = None
    try:
        agent = Agent(path)
        send(b'{"result":null}')
        for line in sys.stdin.buffer:
            request = unpack(line.decode("ascii"))
            result = getattr(agent, request.pop("request"))(**request)
            send(pack({"result": result}).encode("ascii"))
    except BrokenPipeError:
        pass  # the connection has ended
    except (OSError, sqlite3.Error) as error:
        send(json.dumps({"error": str(error)}).encode("ascii"))
    finally:
        if agent:
            agent.close()
