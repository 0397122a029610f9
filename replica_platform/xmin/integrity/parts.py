"""The parts of a rolling proof: which blocks of a source table a sync proves next.

Pure: sizes and times go in, ranges come out. How a part is compared is `rolling`'s.
"""

from dataclasses import dataclass

from replica_platform.xmin.copy.ranges import Range
from replica_platform.xmin.source.catalog import SourceTable
from replica_platform.xmin.target.proof import Position, ProofRound

# Between two ranges a part can end early.
RANGE_BLOCKS = 2_048
# A smaller part costs more in statements than in reading, so it waits until more is due.
LEAST_BLOCKS = 128
DAY_S = 86_400.0


@dataclass(frozen=True)
class Proving:
    """How much of the content each sync proves.

    Attributes:
        within_s: The seconds in which the whole of each table is proven once; each sync proves the
            share of the time since the last part. With 0 each sync proves as much as `most_bytes`.
        most_bytes: The most bytes of the source's heap that one sync reads for it, of all tables.
        most_s: The seconds that it takes, about; the next sync continues where it ended.
    """

    within_s: float = DAY_S
    most_bytes: int = 256 * 1024 * 1024
    most_s: float = 10.0


@dataclass(frozen=True)
class Part:
    """What one sync proves of a table.

    Attributes:
        ranges: The ranges of blocks, in order; the last one of a leaf is open.
        ends_round: Whether they reach the end of the table.
    """

    ranges: tuple[Range, ...]
    ends_round: bool

    @property
    def blocks(self) -> int:
        """How many blocks of the source it reads."""
        return sum(max(1, one.blocks) for one in self.ranges)


def next_part(
    table: SourceTable, last: ProofRound | None, proving: Proving, most_blocks: int
) -> Part | None:
    """Return the next part; None where nothing is due yet.

    Args:
        table: The source table, whose rows lie in heaps.
        last: How far the proof has come; None where no round has begun.
        proving: How much is to be proven.
        most_blocks: The most blocks of the part.
    """
    total = sum(max(leaf.blocks, 1) for leaf in table.leaves)
    due = total
    if proving.within_s > 0:
        due = int(total * (last.part_age_s if last else 0.0) / proving.within_s)
    if due < min(LEAST_BLOCKS, total) or most_blocks < 1:
        return None
    position = last.position if last else Position()
    ranges, ends = _ranges(table, position, min(due, most_blocks))
    return Part(ranges, ends)


def position_after(done: Range) -> Position:
    """Return where the proof continues after a range."""
    if done.last is None:  # the end of the leaf: at the next one
        return Position(done.leaf.oid + 1)
    return Position(done.leaf.oid, done.leaf.filenode, done.last)


def _ranges(table: SourceTable, position: Position, blocks: int) -> tuple[tuple[Range, ...], bool]:
    """Return so many blocks from a position on, and whether they reach the end of the table.

    A leaf that was rewritten since is read from its start: its rows lie elsewhere now.
    """
    ranges: list[Range] = []
    for leaf in sorted(table.leaves, key=lambda leaf: leaf.oid):
        if leaf.oid < position.leaf:
            continue
        same = (leaf.oid, leaf.filenode) == (position.leaf, position.filenode)
        first = position.block if same else 0
        while True:
            if blocks <= 0:
                return tuple(ranges), False
            end = first + min(RANGE_BLOCKS, blocks)
            ranges.append(Range(leaf, first or None, end if end < leaf.blocks else None))
            blocks -= max(1, min(end, leaf.blocks) - first)
            if end >= leaf.blocks:
                break
            first = end
    return tuple(ranges), True
