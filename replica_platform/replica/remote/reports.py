"""What a push, a verification and a prune of a block store did."""

from dataclasses import dataclass, field

from replica_platform.blocks.pool import PRUNE_AGE
from replica_platform.core.reports import DoneReport, ReportFields, format_bytes


@dataclass(frozen=True)
class Pushed(DoneReport):
    """What a push sent.

    Attributes:
        generation: The generation.
        block_count: How many blocks it has.
        blocks_sent: How many of them were sent.
        bytes: The size of its file.
        bytes_sent: How many bytes were sent, compressed.
        seconds: How long it took.
        withdrawn: The generations of an earlier definition of the purpose, which can no longer be
            pulled.
    """

    generation: int
    block_count: int
    blocks_sent: int
    bytes: int
    bytes_sent: int
    seconds: float
    withdrawn: list[int] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        """What was sent."""
        withdrawn = (
            f" Withdrawn, because the purpose changed: {', '.join(map(str, self.withdrawn))}; two "
            "prunes a day apart remove their blocks."
            if self.withdrawn
            else ""
        )
        return (
            f"Generation {self.generation} is in the block store: {self.blocks_sent:,} of "
            f"{self.block_count:,} blocks sent, {format_bytes(self.bytes_sent)}.{withdrawn}"
        )


@dataclass(frozen=True)
class BlockStoreVerification(ReportFields):
    """Whether every block of a generation can be fetched undamaged.

    Attributes:
        generation: The generation.
        block_count: How many different blocks it has.
        ok: Whether all of them are right.
        missing: How many are missing.
        damaged: How many are damaged.
    """

    generation: int
    block_count: int
    ok: bool
    missing: int
    damaged: int

    @property
    def sentence(self) -> str:
        """What is wrong and what to do next, or that all is well."""
        if self.ok:
            return f"Every block of generation {self.generation} in the block store is intact."
        return (
            f"{self.missing} blocks of generation {self.generation} are missing from the block "
            f"store and {self.damaged} are damaged; push it again with resend."
        )


@dataclass(frozen=True)
class Pruned(ReportFields):
    """What a prune did.

    Attributes:
        generations: The generations that were removed.
        marked: How many blocks no manifest names any more; a later prune removes them.
        restored: How many marked blocks were needed again.
        removed: How many blocks were removed.
    """

    generations: list[int]
    marked: int
    restored: int
    removed: int

    @property
    def ok(self) -> bool:
        """True: a prune that fails raises an error."""
        return True

    @property
    def sentence(self) -> str:
        """What was removed, and what a later prune removes."""
        restored = f", {self.restored:,} restored" if self.restored else ""
        return (
            f"{len(self.generations)} generations and {self.removed:,} blocks were removed"
            f"{restored}; {self.marked:,} more are unused and are removed by a prune in "
            f"{PRUNE_AGE.total_seconds() / 3600:g} hours or later."
        )
