"""The journal of a master's checkpoints: which blocks each write may have changed.

It lies beside the master. `Master.write` adds an entry, so that a publication reads only blocks
that may differ from an older generation. The chain of entries breaks where something else changed
the file, and then every block is compared. The rule itself is in `copy.free_list`.
"""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import duckdb

from replica_platform.replica.copy import blocks, free_list
from replica_platform.replica.copy.file_format import HEADER_BYTES, NotDuckDB
from replica_platform.replica.copy.free_list import BlockUse, FreeListUnreadable, read_block_use
from replica_platform.replica.store.manifest import Lineage, Seal

FORMAT = 1
# Far more than a store keeps generations.
LONGEST = 64
NO_JOURNAL = "the master has no journal of its checkpoints"


@dataclass(frozen=True)
class State:
    """A master's file between two writes.

    Attributes:
        header: The digest of its header.
        seal: Its figures in the file system, which any write changes.
    """

    header: str
    seal: Seal

    @classmethod
    def of(cls, fd: int) -> Self:
        """Return the state of an open file."""
        return cls(blocks.digest(os.pread(fd, HEADER_BYTES, 0)), Seal.of(fd))


@dataclass(frozen=True)
class Entry:
    """A state of the master, and what may have changed since the entry before.

    Attributes:
        state: The state.
        changed: The blocks of 256 KiB that may have changed, as ranges: first block, end.
    """

    state: State
    changed: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Journal:
    """The states of one master, oldest first, without a gap.

    Attributes:
        entries: The states.
        gap: Why it does not reach further back.
    """

    entries: tuple[Entry, ...] = ()
    gap: str = NO_JOURNAL

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the journal at `path`; one that is missing or damaged is empty."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            fields = json.loads(path.read_bytes())
            if fields["format"] == FORMAT:
                return cls(tuple(_entry(one) for one in fields["entries"]), str(fields["gap"]))
        return cls()

    def save(self, path: Path) -> None:
        """Replace the journal at `path`. After a power cut, a lost entry is found as a gap."""
        entries = [
            [one.state.header, _figures(one.state.seal), list(map(list, one.changed))]
            for one in self.entries
        ]
        fields = {"format": FORMAT, "gap": self.gap, "entries": entries}
        temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
        try:
            temporary.write_text(json.dumps(fields))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def extended(self, before: State, after: State, changed: set[int] | str) -> "Journal":
        """Return the journal with one more write.

        Args:
            before: The master before it.
            after: The master after it.
            changed: The blocks that may have changed; or, where they are unknown, the reason.
        """
        if isinstance(changed, str):
            return Journal((Entry(after),), changed)
        found = self
        if not self.entries or self.entries[-1].state != before:
            gap = self.gap if not self.entries else _WRITTEN_ELSEWHERE
            found = Journal((Entry(before),), gap)
        entry = Entry(after, tuple(_ranges(changed)))
        return replace(found, entries=(*found.entries, entry)[-LONGEST:])

    def changed_since(self, known: Lineage, found: Lineage) -> set[int] | str:
        """Return the blocks that may differ between two states of the master, or why it is unknown.

        Args:
            known: An older state.
            found: The present one.
        """
        if not self.entries:
            return self.gap
        # Two histories can have equal headers, so the seals have to be equal too.
        if self.entries[-1].state != State(found.header, found.seal):
            return _WRITTEN_ELSEWHERE
        changed: set[int] = set()
        for entry in reversed(self.entries):
            if entry.state == State(known.header, known.seal):
                return changed
            for first, end in entry.changed:
                changed.update(range(first, end))
        return self.gap


_WRITTEN_ELSEWHERE = (
    "the master was changed by a program other than Master.write, or its last write did not end"
)


class JournaledWrite:
    """One write, from before DuckDB opens the file until after it has closed it.

    Opens and closes the file: never use it while DuckDB has it open in this process.

    Args:
        master: The master's file.
        path: The journal.
    """

    def __init__(self, master: Path, path: Path) -> None:
        self._master = master
        self._path = path
        self._before = self._read()

    def finish(self) -> None:
        """Add the write to the journal; where that fails, a gap is found later."""
        after = self._read()
        if self._before is None or after is None:
            return
        with suppress(OSError):
            journal = Journal.load(self._path)
            journal.extended(self._before[0], after[0], _changed(self._before[1], after[1])).save(
                self._path
            )

    def _read(self) -> tuple[State, BlockUse | str] | None:
        """Return the file's state and the use of its blocks, or why that is unknown."""
        with suppress(OSError):
            fd = os.open(self._master, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return State.of(fd), _block_use(fd)
            finally:
                os.close(fd)
        return None


def _block_use(fd: int) -> BlockUse | str:
    if not duckdb.__version__.startswith(free_list.TESTED):
        return f"the rule for changed blocks was not tested with DuckDB {duckdb.__version__}"
    try:
        return read_block_use(fd)
    except (NotDuckDB, FreeListUnreadable) as error:
        return f"the master's list of free blocks cannot be read ({error})"


def _changed(before: BlockUse | str, after: BlockUse | str) -> set[int] | str:
    if isinstance(after, str):
        return after
    if isinstance(before, str):
        return before
    checkpoints = after.header.iteration - before.header.iteration
    if before.header.db_id != after.header.db_id or checkpoints not in (0, 1):
        return f"the master had {checkpoints} checkpoints in one write"
    return before.may_differ(after)


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number:
            ranges[-1] = ranges[-1][0], number + 1
        else:
            ranges.append((number, number + 1))
    return ranges


def _entry(fields: list[Any]) -> Entry:
    header, figures, changed = fields
    ranges = tuple((int(first), int(end)) for first, end in changed)
    return Entry(State(str(header), Seal(*map(int, figures))), ranges)


def _figures(seal: Seal) -> list[int]:
    return [seal.inode, seal.bytes, seal.changed_ns]
