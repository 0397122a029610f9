"""What to do about a bad generation: `repair` what is damaged, or `rollback` to an older one."""

import time
import warnings
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from replica_platform.replica.errors import GenerationDamaged, NothingPublished
from replica_platform.replica.publish import publish
from replica_platform.replica.remote.block_store import BlockStore
from replica_platform.replica.store.candidate import Publication
from replica_platform.replica.store.integrity import find_damage
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, now
from replica_platform.replica.store.ownership import assert_same_purpose
from replica_platform.replica.store.pointer import point_to, pointer_is_sound, store_lock


def repair(
    store: Path | str,
    *,
    block_store: BlockStore | None = None,
    master: Path | str | None = None,
    data_as_of: datetime | None = None,
    run_id: str | None = None,
    read_all: bool = True,
    blocks: BlockStore | None = None,
) -> Publication | None:
    """Repair the pointer, the link or the current generation.

    A damaged generation is fetched from the block store, only the blocks that are missing;
    otherwise the master is published again.

    Args:
        store: The store's folder.
        block_store: Where to fetch blocks from.
        master: The master to publish from.
        data_as_of: The time that the master's data describes.
        run_id: The run that repairs.
        read_all: Read every byte, not only what the file system knows.
        blocks: The former name of `block_store`.

    Returns:
        What was published; None when nothing was wrong.

    Raises:
        GenerationDamaged: It is damaged, and neither a block store nor the master is given.
        StoreBusy: Another process is changing the store.
        PlatformError: The block store or the publication failed.
    """
    if blocks is not None:
        warnings.warn("repair(blocks=…) is now block_store=…", DeprecationWarning, stacklevel=2)
        block_store = block_store or blocks
    layout = Layout(store)
    current = layout.latest()
    problem = _problem(layout, current, read_all)
    if problem is None and current is not None:
        return _repair_pointer(layout, current)
    reasons = []
    if block_store is not None:
        try:
            return block_store.pull(store, current.generation if current else None)
        except NothingPublished as error:
            reasons.append(str(error))
    if master is not None:
        return publish(master, store, data_as_of=data_as_of, run_id=run_id)
    raise GenerationDamaged(
        f"{problem}, and there is nothing to repair it from"
        f"{f' ({reasons[0]})' if reasons else ''}; give a block store or the master, or roll back."
    )


def rollback(store: Path | str, to: int | None = None) -> Publication:
    """Verify an older generation and make it current.

    The state of the master that readers are rolled back from is not published again until the
    master changes.

    Args:
        store: The store's folder.
        to: The generation; by default the one before the current one.

    Returns:
        What is current now.

    Raises:
        NothingPublished: The store does not have that generation.
        WrongStore: It belongs to another purpose.
        GenerationDamaged: It is damaged.
        StoreBusy: Another process is changing the store.
    """
    started = time.monotonic()
    layout = Layout(store)
    with store_lock(layout):
        current = layout.find(None)
        manifest = layout.find(_generation_before(layout, current) if to is None else to)
        assert_same_purpose(layout.root, current.purpose, manifest.purpose)
        if damage := find_damage(layout.data(manifest), manifest, read_all=True):
            raise GenerationDamaged(
                f"Cannot roll back to generation {manifest.generation}: {damage}; readers stay on "
                f"generation {current.generation}. Choose another one, or publish again."
            )
        withheld = current.lineage if current.generation != manifest.generation else None
        manifest = replace(manifest, confirmed_at=now(), withheld=withheld)
        point_to(layout, manifest)
    return Publication.unchanged(layout.data(manifest), manifest, time.monotonic() - started)


def _problem(layout: Layout, current: Manifest | None, read_all: bool) -> str | None:
    if current is None:
        return f"Nothing is published in {layout.root}"
    damage = find_damage(layout.data(current), current, read_all=read_all)
    return damage and f"Generation {current.generation} is damaged or gone: {damage}"


def _repair_pointer(layout: Layout, current: Manifest) -> Publication | None:
    if pointer_is_sound(layout, current):
        return None
    with store_lock(layout):
        point_to(layout, current)
    return Publication.unchanged(layout.data(current), current)


def _generation_before(layout: Layout, current: Manifest) -> int:
    older = [kept.generation for kept in layout.kept() if kept.generation < current.generation]
    if not older:
        raise NothingPublished(
            f"Generation {current.generation} is the oldest kept in {layout.root}; there is "
            "nothing to roll back to. Correct the data in the master and publish again."
        )
    return older[0]
