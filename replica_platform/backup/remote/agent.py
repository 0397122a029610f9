"""The other side of a pull: what runs over there, in a python3 that has nothing of ours.

Sent over the connection after `look`, into the same namespace; so the same rules hold: the
standard library, the syntax of Python 3.7. A request is a line of JSON, an answer too; a file
follows its answer as it is. Reads the database, never writes to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replica_platform.backup.child.contents import (
        count_tables,
        describe,
        packed,
        ranges,
        rows_after,
        table_names,
        unpacked,
    )

BLOCK_BYTES = 1 << 18
LEFT_OVER = ".replica-pull-"


class Far:
    """One connection's work on one database; each public method is a request."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.copy: Path | None = None
        if not self.path.is_file():
            raise OSError(f"there is no file {path}")
        self.path = self.path.resolve()
        self.db = self._open(self.path)

    def _open(self, path: Path) -> sqlite3.Connection:
        # Never immutable: that would read past the WAL of a file that is written to.
        uri = path.as_uri() + "?mode=ro"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)
        db.execute("select count(*) from sqlite_master").fetchone()
        return db

    def info(self) -> dict[str, Any]:
        """What the file is, and what reads it."""
        wal = self.path.with_name(self.path.name + "-wal")
        return {
            "bytes": self.path.stat().st_size,
            "wal_bytes": wal.stat().st_size if wal.exists() else 0,
            "journal_mode": self.db.execute("pragma journal_mode").fetchone()[0],
            "sqlite": sqlite3.sqlite_version,
            "python": ".".join(str(part) for part in sys.version_info[:3]),
        }

    def count(self) -> list[Any]:
        """Rows of each table and the newest values, as of now or of the moment held."""
        return list(count_tables(self.db))

    def schema(self) -> dict[str, Any]:
        """Every statement that made it, its settings, and its tables as `look` describes them."""
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
            "tables": [] if virtual else [describe(self.db, name) for name in names],
        }

    def begin(self) -> None:
        """Hold this moment: whatever is read from here on is of one and the same."""
        self.db.execute("begin")
        self.db.execute("select count(*) from sqlite_master").fetchone()

    def end(self) -> None:
        """Let the moment go."""
        if self.db.in_transaction:
            self.db.execute("rollback")

    def version(self) -> int:
        """A number that changes with each commit of anybody else."""
        return int(self.db.execute("pragma data_version").fetchone()[0])

    def rows(self, table: Any, after: Any, until: Any, limit: int) -> list[Any]:
        """A page of rows."""
        return list(rows_after(self.db, table, after, until, limit))

    def ranges(self, table: Any, bounds: Any) -> list[Any]:
        """Counts and digests between bounds."""
        return ranges(self.db, table, bounds)

    def snapshot(self) -> dict[str, Any]:
        """Copy the file in one step of the backup API, over here; its size and checksum.

        From then on the other requests are answered from the copy.
        """
        folder = self.path.parent
        if not os.access(folder, os.W_OK):
            folder = Path(tempfile.gettempdir())
        self._clear(folder)
        free = os.statvfs(folder)
        needed = self.db.execute("pragma page_count").fetchone()[0]
        needed *= self.db.execute("pragma page_size").fetchone()[0]
        if free.f_bavail * free.f_frsize < needed:
            raise OSError(f"a copy needs {needed} bytes and {folder} over there has less free")
        prefix = LEFT_OVER + str(os.getpid()) + "-"
        handle, copy = tempfile.mkstemp(prefix=prefix, suffix=".db", dir=str(folder))
        os.close(handle)
        self.copy = Path(copy)
        quiet = sqlite3.connect(copy, isolation_level=None)
        quiet.execute("pragma journal_mode=off")
        quiet.execute("pragma synchronous=off")
        self.db.backup(quiet, pages=-1)
        quiet.close()
        quiet = sqlite3.connect(copy, isolation_level=None)
        quiet.execute("pragma journal_mode=delete")
        quiet.close()
        self.db.close()
        self.db = self._open(self.copy)
        digest, size = hashlib.sha256(), 0
        with self.copy.open("rb") as file:
            for block in iter(lambda: file.read(BLOCK_BYTES), b""):
                digest.update(block)
                size += len(block)
        return {"bytes": size, "sha256": digest.hexdigest()}

    def send(self) -> None:
        """The copy, as it is, straight after this request's answer."""
        assert self.copy
        with self.copy.open("rb") as file:
            for block in iter(lambda: file.read(BLOCK_BYTES), b""):
                sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()

    def close(self) -> None:
        """Leave nothing behind."""
        self.db.close()
        if self.copy:
            self.copy.unlink()

    def _clear(self, folder: Path) -> None:
        for left in folder.glob(LEFT_OVER + "*"):
            pid = left.name[len(LEFT_OVER) :].split("-")[0]
            if not Path("/proc", pid).exists():
                left.unlink()


def answer(text: str) -> None:
    """One line back."""
    sys.stdout.buffer.write(text.encode("ascii") + b"\n")
    sys.stdout.buffer.flush()


def serve(path: str) -> None:
    """Answer requests until there are no more."""
    far = None
    try:
        far = Far(path)
        answer('{"result":null}')
        for line in sys.stdin.buffer:
            request = unpacked(line.decode("ascii"))
            if request["do"] == "send":
                answer('{"result":null}')
                far.send()
                continue
            result = getattr(far, request.pop("do"))(**request)
            answer('{"result":' + packed(result) + "}")
    except BrokenPipeError:
        pass  # nobody is there any more
    except (OSError, sqlite3.Error) as error:
        answer(json.dumps({"error": str(error), "kind": type(error).__name__}))
    finally:
        if far:
            far.close()
