"""Counts of rows by bucket: a run of heap blocks, the same in every leaf.

A scan counts the live rows of each bucket; the counts of a later one tell where versions have gone.
Leaves are not told apart, so that a table of many partitions needs no more counts than another one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from replica_platform.xmin.copy.changes import ScannedBucket
from replica_platform.xmin.source.catalog import SourceTable

# A megabyte. Larger tables have larger buckets, so that the counts stay small beside the table.
LEAST_BLOCKS = 128
MOST_BUCKETS = 1 << 16


@dataclass(frozen=True)
class BucketCounts:
    """Rows by bucket.

    Attributes:
        blocks: The blocks of a bucket, a power of two.
        rows: The rows of each bucket, by its number; the others have none.
    """

    blocks: int
    rows: Mapping[int, int]

    def __sub__(self, other: "BucketCounts") -> "BucketCounts":
        """Return the difference by bucket, in the larger buckets of the two."""
        blocks = max(self.blocks, other.blocks)
        left, right = (one.of_blocks(blocks).rows for one in (self, other))
        return BucketCounts(blocks, {n: left.get(n, 0) - right.get(n, 0) for n in {*left, *right}})

    def listed(self) -> list[int]:
        """Return the rows of each bucket in order, from the first to the last that has any."""
        return [self.rows.get(number, 0) for number in range(max(self.rows, default=-1) + 1)]

    def of_blocks(self, blocks: int) -> "BucketCounts":
        """Return the counts in larger buckets."""
        ratio = blocks // self.blocks
        return BucketCounts(
            blocks, _summed((number // ratio, rows) for number, rows in self.rows.items())
        )


def bucket_blocks(table: SourceTable) -> int:
    """Return the blocks of a bucket of a table."""
    blocks = LEAST_BLOCKS
    while max((leaf.blocks for leaf in table.leaves), default=0) > blocks * MOST_BUCKETS:
        blocks *= 2
    return blocks


def live_rows(scanned: Iterable[ScannedBucket], blocks: int) -> BucketCounts:
    """Return the live rows of scanned buckets."""
    return BucketCounts(blocks, _summed((one.number, one.rows) for one in scanned))


def kept_rows(scanned: Iterable[ScannedBucket], blocks: int) -> BucketCounts:
    """Return the rows of scanned buckets that the watermark covers."""
    return BucketCounts(blocks, _summed((one.number, one.rows - one.changed) for one in scanned))


def _summed(counts: Iterable[tuple[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for number, rows in counts:
        total[number] = total.get(number, 0) + rows
    return total
