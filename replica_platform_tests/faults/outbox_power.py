"""A disk whose power can be cut: an APSW file system that records what was synced when.

Every write, truncation, sync and deletion is recorded in order. A cut at any moment of that
journal gives the files as a disk may show them afterwards: everything synced, and of the rest
nothing or any 512-byte sectors. File names are assumed to be durable; the engine syncs the folder
itself.
"""

import random
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

SECTOR_BYTES = 512


@dataclass(frozen=True)
class Change:
    """One operation of SQLite on its disk.

    Attributes:
        name: The file.
        what: write, truncate, sync or delete.
        at: The offset of a write, or the new size.
        data: The bytes written.
    """

    name: str
    what: str
    at: int = 0
    data: bytes = b""


class PowerDisk(apsw.VFS):
    """The file system; `journal` has every change to it."""

    def __init__(self) -> None:
        self.journal: list[Change] = []
        self.name = f"power-{secrets.token_hex(4)}"
        super().__init__(self.name, "unix")

    def connect(self, path: Path) -> apsw.Connection:
        connection = apsw.Connection(str(path), vfs=self.name)
        # APSW's files share no memory; with an exclusive lock, WAL needs none.
        connection.execute("pragma locking_mode = exclusive")
        return connection

    def xOpen(self, name: Any, flags: list[int]) -> "PowerFile":
        return PowerFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self.journal.append(Change(Path(filename).name, "delete"))
        super().xDelete(filename, syncdir)


class PowerFile(apsw.VFSFile):
    def __init__(self, disk: PowerDisk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        given = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(given).name if given else None
        super().__init__("unix", name, flags)

    def _note(self, what: str, at: int = 0, data: bytes = b"") -> None:
        if self._name is not None:
            self._disk.journal.append(Change(self._name, what, at, data))

    def xWrite(self, data: bytes, offset: int) -> None:
        self._note("write", offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        self._note("truncate", newsize)
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._note("sync")


def after_cut(
    journal: list[Change], moment: int, folder: Path, torn: bool, chance: random.Random
) -> None:
    """Write the files as they are after a power cut that follows `moment` changes."""
    synced: dict[str, bytearray] = {}
    waiting: dict[str, list[Change]] = {}
    for change in journal[:moment]:
        image = synced.setdefault(change.name, bytearray())
        queue = waiting.setdefault(change.name, [])
        if change.what == "sync":
            for one in queue:
                _apply(image, one)
            queue.clear()
        elif change.what == "delete":
            del synced[change.name], waiting[change.name]
        else:
            queue.append(change)
    for name, image in synced.items():
        for change in waiting[name] if torn else []:
            for part in _sectors(change):
                if chance.random() < 0.5:
                    _apply(image, part)
        (folder / name).write_bytes(image)


def _sectors(change: Change) -> list[Change]:
    if change.what != "write":
        return [change]
    return [
        Change(change.name, "write", change.at + start, change.data[start : start + SECTOR_BYTES])
        for start in range(0, len(change.data), SECTOR_BYTES)
    ]


def _apply(image: bytearray, change: Change) -> None:
    end = change.at + len(change.data)
    if len(image) < end:
        image.extend(bytes(end - len(image)))
    if change.what == "truncate":
        del image[change.at :]
    else:
        image[change.at : end] = change.data
