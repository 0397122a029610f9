"""WAL summaries: which blocks of which leaves changed between two positions of the WAL.

A summary names every heap block that a WAL record touched, whether or not the transaction was
committed, and a limit for each file that was truncated: below that nothing is said of the blocks at
or above it, so all of them count as changed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from replica_platform.xmin.source.catalog import Leaf
from replica_platform.xmin.source.start_point import format_lsn, parse_lsn

_AVAILABLE = """
select start_lsn::text, end_lsn::text from pg_available_wal_summaries()
where tli = %s and end_lsn > %s::pg_lsn and start_lsn < %s::pg_lsn order by start_lsn, end_lsn
"""
_CONTENTS = """
-- By database, since two have files of one number; not by tablespace: a database that is moved to
-- another one keeps the numbers of its files, and was written to under the old one before. Should
-- another table there have the number, its blocks are read in vain.
with leaves as (
    select oid, pg_relation_filenode(oid) as filenode from pg_class where oid = any(%(oids)s)
)
select s.end_lsn::text, l.oid,
       coalesce(array_agg(c.relblocknumber) filter (where not c.is_limit_block), '{}'),
       min(c.relblocknumber) filter (where c.is_limit_block)
from unnest(%(starts)s::pg_lsn[], %(ends)s::pg_lsn[]) s(start_lsn, end_lsn)
cross join lateral pg_wal_summary_contents(%(timeline)s, s.start_lsn, s.end_lsn) c
join leaves l on l.filenode = c.relfilenode
where c.reldatabase = (select oid from pg_database where datname = current_database())
  and c.relforknumber = 0
group by 1, 2
"""


# Removed since it was listed, or damaged.
_UNREADABLE = (
    psycopg.errors.UndefinedFile,
    psycopg.errors.DataCorrupted,
    psycopg.errors.DataException,
    psycopg.errors.InternalError_,
)


class NoSummaries(Exception):
    """The summaries do not tell which blocks changed; the text says why."""


@dataclass(frozen=True)
class LeafBlocks:
    """The changed blocks of one leaf.

    Attributes:
        blocks: Their numbers, ascending.
        tail: The first of the blocks that all count as changed, to the end of the leaf; None for
            none of them.
    """

    blocks: Sequence[int] = ()
    tail: int | None = None

    def __bool__(self) -> bool:
        """Return whether any block changed."""
        return bool(self.blocks) or self.tail is not None

    def listed(self, end: int) -> list[int]:
        """Return all changed blocks of a leaf that ends before block `end`."""
        if self.tail is None:
            return [block for block in self.blocks if block < end]
        return [*(b for b in self.blocks if b < min(self.tail, end)), *range(self.tail, end)]


@dataclass(frozen=True)
class _Piece:
    """What one summary says of one leaf."""

    end: int
    leaf: int
    blocks: Sequence[int]
    limit: int | None


@dataclass(frozen=True)
class ChangedBlocks:
    """What the summaries of a stretch of WAL say.

    Attributes:
        start: Where the stretch begins.
        end: Where it ends.
    """

    start: int
    end: int
    _by_leaf: Mapping[int, Sequence[_Piece]] = field(default_factory=dict, repr=False)

    def of(self, leaf: Leaf, since: int) -> LeafBlocks:
        """Return the blocks of a leaf that changed since a position."""
        told = [piece for piece in self._by_leaf.get(leaf.oid, ()) if piece.end > since]
        limits = [piece.limit for piece in told if piece.limit is not None]
        blocks = sorted({block for piece in told for block in piece.blocks})
        return LeafBlocks(blocks, min(limits, default=None))


def read_changes(
    source: psycopg.Connection, timeline: int, start: int, end: int, leaves: Iterable[int]
) -> ChangedBlocks:
    """Read the summaries of a stretch of WAL, for all leaves in one statement.

    Args:
        source: A session on the source.
        timeline: The source's timeline.
        start: Where the stretch begins, in bytes.
        end: Where it ends.
        leaves: The oids of the leaves.

    Raises:
        NoSummaries: Summaries of a part of the stretch are missing.
    """
    chain = _chain(source, timeline, start, end)
    values = {
        "oids": list(leaves),
        "timeline": timeline,
        "starts": [format_lsn(one) for one, _ in chain],
        "ends": [format_lsn(other) for _, other in chain],
    }
    try:
        with source.transaction():  # an error must not end the snapshot
            rows = source.execute(sql.SQL(_CONTENTS), values).fetchall()
    except _UNREADABLE as error:
        message = " ".join(str(error).split()).rstrip(".")
        raise NoSummaries(f"A summary of the WAL cannot be read ({message}).") from error
    pieces: dict[int, list[_Piece]] = {}
    for to, leaf, blocks, limit in rows:
        pieces.setdefault(leaf, []).append(_Piece(parse_lsn(to), leaf, blocks, limit))
    return ChangedBlocks(start, end, pieces)


def _chain(
    source: psycopg.Connection, timeline: int, start: int, end: int
) -> list[tuple[int, int]]:
    """Return the summaries that cover a stretch of WAL without a gap.

    Raises:
        NoSummaries: There is a gap.
    """
    chain: list[tuple[int, int]] = []
    covered = start
    found = source.execute(sql.SQL(_AVAILABLE), [timeline, format_lsn(start), format_lsn(end)])
    for first, last in found.fetchall():
        one, other = parse_lsn(first), parse_lsn(last)
        if one > covered:
            break
        chain.append((one, other))
        covered = max(covered, other)
    if covered < end:
        raise NoSummaries(
            f"The WAL from {format_lsn(covered)} to {format_lsn(end)} has no summaries: "
            "summarize_wal was off, they were removed after wal_summary_keep_time, or the "
            "summarizer is behind."
        )
    return chain
