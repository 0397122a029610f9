"""A generation as its reader takes it: leased so that it stays, checked before DuckDB sees it.

DuckDB given a file with swapped blocks can answer wrongly or take the process with it, so bytes
are known to be good before it opens them. Standard library only, `xxhash` where bytes must be
read again.
"""

import os
from pathlib import Path
from typing import Self

from replica_platform.core import locks
from replica_platform.replica.copy import blocks
from replica_platform.replica.store.layout import Layout, sealed
from replica_platform.replica.store.manifest import Manifest

# Inode, size and time of the last change, as `identity` finds them.
Identity = tuple[int, int, int]
SIDECARS = (".wal", ".wal.checkpoint", ".wal.recovery")


class Unusable(Exception):
    """The generation cannot be read; `passing` when it is worth another look without a change."""

    def __init__(self, words: str, *, passing: bool = False) -> None:
        super().__init__(words)
        self.passing = passing


class Lease:
    """A shared lock on a generation's lease file: as long as it is held, the file stays."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    @classmethod
    def take(cls, layout: Layout, manifest: Manifest) -> Self:
        """Errors: `Unusable`, when the generation is gone or on its way out."""
        try:
            fd = os.open(layout.lease(manifest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            lease = cls(None)
        else:
            lease = cls(fd)
            if not locks.try_lock(fd, shared=True):
                lease.release()
                raise Unusable(f"generation {manifest.generation} is being retired", passing=True)
        # Looked at after the lock: a retired generation has lost its name before its lease.
        if not layout.data(manifest).exists():
            lease.release()
            raise Unusable(f"the file of generation {manifest.generation} is gone", passing=True)
        return lease

    def release(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def identity(path: Path) -> Identity:
    """The file as the system knows it now; another one when it was repaired. Errors: `OSError`."""
    seen = path.stat()
    return seen.st_ino, seen.st_size, seen.st_ctime_ns


def check(path: Path, manifest: Manifest, *, distrustful: bool = False) -> None:
    """Make sure that `path` holds the generation, byte for byte. Errors: `Unusable`, `OSError`.

    An unbroken seal is enough unless `distrustful`; else every byte is read.
    """
    for suffix in SIDECARS:
        if path.with_name(path.name + suffix).exists():
            raise Unusable(f"a foreign log {path.name}{suffix} lies beside it; remove it")
    size = path.stat().st_size
    if size != manifest.bytes:
        raise Unusable(f"{path.name} has {size} bytes instead of {manifest.bytes}")
    if sealed(path, manifest) and not distrustful:
        return
    try:
        found = blocks.digests(path)
    except ModuleNotFoundError as error:
        raise Unusable(
            f"{path.name} was touched since it was verified, and reading it again needs xxhash"
        ) from error
    if found != manifest.blocks:
        wrong = [
            number
            for number, pair in enumerate(zip(found, manifest.blocks, strict=False))
            if pair[0] != pair[1]
        ]
        raise Unusable(
            f"{len(wrong)} of {len(found)} blocks of {path.name} are not what was published"
        )
