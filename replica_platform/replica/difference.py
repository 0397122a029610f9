"""What may differ between a spare and the master, so that a publication reads only that.

By the journal of the master's checkpoints, and only while the spare's other bytes were read within
a week: nothing else would find damage in what is not read.
"""

from dataclasses import dataclass
from datetime import datetime

from replica_platform.replica.master import QuiescentMaster
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Lineage, Manifest
from replica_platform.replica.store.scrub_state import fully_read_at


@dataclass(frozen=True)
class Difference:
    """The blocks in which the master may differ from a spare.

    Attributes:
        blocks: Those blocks; None if it may be any.
        reason: Why it may be any; else empty.
        read_at: When the spare's bytes had all been read; None if too long ago.
    """

    blocks: frozenset[int] | None
    reason: str
    read_at: datetime | None


def find_difference(
    layout: Layout, spare: Manifest, source: QuiescentMaster, lineage: Lineage
) -> Difference:
    """Return what may differ between a spare and the master at rest.

    Args:
        layout: The store.
        spare: The spare.
        source: The master.
        lineage: Its lineage.
    """
    read_at = fully_read_at(layout, spare)
    if read_at is None:
        reason = "its bytes were not all read for a week; scrub the store regularly"
        return Difference(None, reason, read_at)
    changed = source.journal.changed_since(spare.lineage, lineage)
    if isinstance(changed, str):
        return Difference(None, changed, read_at)
    return Difference(frozenset(changed), "", read_at)
