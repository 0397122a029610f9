"""Whether the master is still in the state that a generation was made from.

The header holds the database's identity and its number of checkpoints. Two histories of the same
length (one of them from a restored backup) can have equal headers, so an equal header counts only
while the file's seal is unbroken; otherwise every byte is compared, and the new seal is remembered
in the store. Bytes in free blocks may differ: a write that was rolled back or killed leaves them.
"""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict
from itertools import zip_longest

from replica_platform.core.files import write_atomically
from replica_platform.replica.copy import blocks
from replica_platform.replica.copy.file_format import NotDuckDB, parse_header
from replica_platform.replica.copy.free_list import FreeListUnreadable, differ_only_unused
from replica_platform.replica.errors import WrongLineage
from replica_platform.replica.master import QuiescentMaster
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import CLOCK_STEP_NS, Lineage, Manifest, Seal


def lineage_of(header: bytes, seal: Seal) -> Lineage:
    """Return the lineage of the master with that header.

    Raises:
        NotDuckDB: The header is damaged.
    """
    parsed = parse_header(header)
    return Lineage(parsed.db_id, parsed.iteration, blocks.digest(header), seal)


def is_known_content(layout: Layout, known: Lineage, found: Lineage) -> bool | None:
    """Return whether a master of lineage `found` is what was published as `known`.

    None if its bytes have to be compared: the header is equal, but the file was touched since.
    """
    if known != found:
        return False
    if known.seal == found.seal:
        return True
    copy = _copy_of(layout, known)
    with suppress(OSError, ValueError):
        if copy and json.loads(layout.master_state.read_bytes()) == _verified(copy, found):
            return True
    return None


def has_same_content(layout: Layout, known: Lineage, found: Lineage, master: int) -> bool | None:
    """Return the same of the open file `master`, and compare its bytes where that is needed.

    None where this is unknown: no generation holds the bytes that the master had.
    """
    is_known = is_known_content(layout, known, found)
    copy = _copy_of(layout, known)
    if is_known is not None or copy is None:
        return is_known
    settled = _wait_until_settled(found.seal)
    digests = blocks.scan(master, found.seal.bytes).digests
    if digests != copy.block_digests and not _differs_only_unused(layout, copy, master, digests):
        return False
    if settled and Seal.of(master) == found.seal:
        with suppress(OSError):  # this user may not write into the store
            write_atomically(layout.master_state, json.dumps(_verified(copy, found)).encode())
    return True


def _differs_only_unused(layout: Layout, copy: Manifest, master: int, digests: list[str]) -> bool:
    """Return whether the master has the same content, beside what an unfinished write left."""
    pairs = zip_longest(digests, copy.block_digests)
    different = [block for block, (one, other) in enumerate(pairs) if one != other]
    with suppress(OSError, NotDuckDB, FreeListUnreadable):
        fd = os.open(layout.data(copy), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return differ_only_unused(master, fd, different)
        finally:
            os.close(fd)
    return False


def _copy_of(layout: Layout, known: Lineage) -> Manifest | None:
    """Return a generation with the bytes that the master had; a purpose's has others."""
    copies = (kept for kept in layout.kept() if kept.lineage == known and kept.purpose is None)
    return next(copies, None)


def _verified(copy: Manifest, found: Lineage) -> dict[str, object]:
    """Return what is remembered of a master whose bytes are those of `copy`."""
    return {"digest": copy.digest, "seal": asdict(found.seal)}


def _wait_until_settled(seal: Seal) -> bool:
    """Wait until another write would change the seal: the file system's clock has steps."""
    age_ns = time.time_ns() - seal.changed_ns
    if 0 <= age_ns < CLOCK_STEP_NS:
        time.sleep(CLOCK_STEP_NS / 1e9)
    return time.time_ns() - seal.changed_ns >= CLOCK_STEP_NS


def is_published(
    layout: Layout, current: Manifest | None, found: Lineage, master: int
) -> bool | None:
    """Return whether the master is in the state that readers have or were rolled back from."""
    for known in (current.lineage, current.withheld) if current else ():
        if known == found:
            return has_same_content(layout, known, found, master)
    return False


def assert_continued(
    current: Manifest | None, found: Lineage, master: QuiescentMaster, published: bool | None
) -> None:
    """Make sure that the master descends from the state of the current generation.

    Storage older than v1.5.0 has no identity, and is accepted.

    Raises:
        WrongLineage: It is another database, older, or has another history.
    """
    if current is None or not master.header.has_identity:
        return
    known = current.lineage
    if known.db_id != found.db_id:
        difference = "is another database than"
    elif found.iteration < known.iteration:
        difference = "is older than"
    elif found.iteration == known.iteration and published is False:
        difference = "has parted from"
    else:
        return
    raise WrongLineage(
        f"The master {master.path} {difference} the one generation {current.generation} came from; "
        "nothing was published. If it was restored or rebuilt on purpose, publish once with "
        "new_lineage."
    )
