"""The processor time of each part of a backup, against that of `cp` and its time with an fsync.

    python benchmarks/backup_parts.py [--megabytes 300] [--rounds 5]

The least of several rounds is printed, which other programs on the machine change little; the time
by the clock, which they change much, is printed for `cp` alone. What a backup cannot do without is
thus a floor of its time: on a machine of two cores, half of the sum.
"""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

import xxhash
from backup_one_step import cp_and_fsync, make

from replica_platform.backup.blocks.store import BLOCK_BYTES
from replica_platform.backup.child.contents import count_tables
from replica_platform.backup.child.file_copy import copy_bytes
from replica_platform.backup.child.integrity import check_integrity
from replica_platform.backup.child.process import clone
from replica_platform.blocks.cipher import digest
from replica_platform.core.sqlite import sqlite3


def processor_s(part: Callable[[], object]) -> float:
    """Return the processor time of a part and of its child processes, in seconds."""
    began = _used_s()
    part()
    return _used_s() - began


def _used_s() -> float:
    usages = getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def blocks(file: Path, of: Callable[[bytes], object]) -> None:
    """Apply a function to each block of a file."""
    with file.open("rb", 0) as opened:
        for block in iter(lambda: opened.read(BLOCK_BYTES), b""):
            of(block)


def opened(file: Path) -> sqlite3.Connection:
    """Open a quiet file as the check of a backup does."""
    db = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    db.execute(f"pragma mmap_size={1 << 40}")
    db.execute("pragma cache_size=-65536")
    return db


def copy(live: Path, to: Path) -> None:
    """Copy as a backup does, without the fsync."""
    with live.open("rb", 0) as source, to.open("wb", 0) as target:
        copy_bytes(source.fileno(), target.fileno(), 0, os.fstat(source.fileno()).st_size)


def checked(file: Path) -> None:
    """Check the structure."""
    with closing(opened(file)) as db:
        assert check_integrity(db).is_sound


def counted(file: Path) -> None:
    """Count the rows, find the newest values."""
    with closing(opened(file)) as db:
        count_tables(db)


def main() -> None:
    """Make the file, measure the parts, print them over `cp`."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--megabytes", type=int, default=300)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        live, to, empty = (Path(name) / part for part in ("large.db", "copy.db", "empty"))
        empty.touch()
        make(live, given.megabytes)
        clock: list[float] = []

        def cp() -> None:
            began = time.perf_counter()
            cp_and_fsync(live, to)
            clock.append(time.perf_counter() - began)

        parts: dict[str, Callable[[], object]] = {
            "cp + fsync": cp,
            "start of the child": lambda: clone(empty, to, BLOCK_BYTES),
            "copy": lambda: copy(live, to),
            "integrity_check": lambda: checked(to),
            "rows and newest values": lambda: counted(to),
            "SHA-256 of the file": lambda: blocks(to, hashlib.sha256().update),
            "as blocks: BLAKE2b of each": lambda: blocks(to, digest),
            "not done: XXH3 of each": lambda: blocks(to, xxhash.xxh3_128_digest),
        }
        least = dict.fromkeys(parts, float("inf"))
        for _ in range(given.rounds):
            for what, part in parts.items():
                if what in ("cp + fsync", "start of the child", "copy"):
                    to.unlink(missing_ok=True)
                least[what] = min(least[what], processor_s(part))
        peer_s = min(clock)
        print(f"{live.stat().st_size / 1e6:.0f} MB; cp + fsync takes {peer_s:.3f} s by the clock")
        for what, used_s in least.items():
            print(f"{what:28} {used_s:7.3f} s of processor: {used_s / peer_s:5.2f}")


if __name__ == "__main__":
    main()
