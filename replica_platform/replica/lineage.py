"""Whether a master is still in the state that a generation shows.

Its header tells database and checkpoint count. Two histories of the same length (one of them from
a restored backup) can have the very same header, so an equal header is believed only while the
file's seal is unbroken too; else every byte is compared.
"""

from replica_platform.replica.copy import blocks
from replica_platform.replica.copy.header import parse_header
from replica_platform.replica.errors import WrongLineage
from replica_platform.replica.master import Settled
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Lineage, Manifest, Seal


def lineage_of(header: bytes, seal: Seal) -> Lineage:
    """The lineage of the master with that header. Errors: `NotDuckDB`."""
    parsed = parse_header(header)
    return Lineage(parsed.db_id, parsed.iteration, blocks.digest(header), seal)


def is_same(layout: Layout, known: Lineage, found: Lineage, master: int) -> bool | None:
    """Whether the open file `master`, of lineage `found`, is what was published as `known`.

    None where that cannot be told: no generation holds its bytes as they were.
    """
    if known != found:
        return False
    if known.seal == found.seal:
        return True
    # A purpose replica has other bytes than its master.
    copies = (kept for kept in layout.kept() if kept.lineage == known and kept.purpose is None)
    copy = next(copies, None)
    if copy is None:
        return None
    return blocks.survey_of(master, found.seal.bytes).digests == copy.blocks


def is_known(layout: Layout, current: Manifest | None, found: Lineage, master: int) -> bool | None:
    """Whether the master is as readers have it, or as they were rolled back from it on purpose."""
    for known in (current.lineage, current.withheld) if current else ():
        if known == found:
            return is_same(layout, known, found, master)
    return False


def assert_continued(
    current: Manifest | None, found: Lineage, settled: Settled, same: bool | None
) -> None:
    """Errors: `WrongLineage`. Old storage has no identity, and then nothing can be told."""
    if current is None or not settled.header.has_identity:
        return
    known = current.lineage
    if known.db_id != found.db_id:
        wrong = "is another database than"
    elif found.iteration < known.iteration:
        wrong = "is older than"
    elif found.iteration == known.iteration and same is False:
        wrong = "has parted from"
    else:
        return
    raise WrongLineage(
        f"The master {settled.path} {wrong} the one generation {current.generation} came from; "
        "nothing was published. If it was restored or rebuilt on purpose, publish once with "
        "new_lineage."
    )
