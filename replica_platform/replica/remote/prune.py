"""Removing generations from a block store, and the blocks that no manifest names any more.

A block is marked first, by renaming it, and removed by a prune a day later, because a push that
runs at the same time may count on it.
"""

from datetime import UTC, datetime
from pathlib import Path

from replica_platform.replica.remote.index import Index, stem
from replica_platform.replica.remote.objects import Objects
from replica_platform.replica.remote.reports import PRUNE_AGE, Pruned
from replica_platform.replica.remote.stored_blocks import digest_of, object_name
from replica_platform.replica.store.manifest import generation_in, now

UNUSED_SINCE = "%Y%m%dT%H%M%SZ"


def prune(objects: Objects, index: Index, keep: int) -> Pruned:
    """Remove all generations but the newest `keep` and the current one, and their blocks."""
    number, current = index.last_pointer()
    old = [
        name for name in index.names()[keep:] if current is None or Path(name).stem != stem(current)
    ]
    pointers = sorted(objects.names("pointers"))
    objects.remove(old + pointers[:-1] if number else old)
    needed = index.needed()
    moment = now()
    marked = [
        name
        for name, created in objects.names("blocks").items()
        if digest_of(name) not in needed and created < moment - PRUNE_AGE
    ]
    for name in marked:
        objects.rename(name, f"unused/{moment:{UNUSED_SINCE}}/{Path(name).name}")
    # Read again: a push may have ended since.
    needed = index.needed()
    unused = list(objects.names("unused"))
    restored = [name for name in unused if digest_of(name) in needed]
    for name in restored:
        objects.rename(name, object_name(digest_of(name)))
    removed = [
        name
        for name in unused
        if digest_of(name) not in needed and _unused_since(name) <= moment - PRUNE_AGE
    ]
    objects.remove(removed)
    return Pruned(
        generations=sorted(generation_in(name) or 0 for name in old),
        marked=len(unused) - len(restored) - len(removed),
        restored=len(restored),
        removed=len(removed),
    )


def _unused_since(name: str) -> datetime:
    return datetime.strptime(Path(name).parent.name, UNUSED_SINCE).replace(tzinfo=UTC)
