"""What is missing or damaged made good again, without hands: a pointer, a generation, a store."""

from datetime import datetime
from pathlib import Path

from replica_platform.replica.errors import GenerationDamaged, NothingPublished
from replica_platform.replica.publish import publish
from replica_platform.replica.remote.block_store import BlockStore
from replica_platform.replica.serving.generation import Unusable, check
from replica_platform.replica.store.candidate import Publication, point, publishing
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, NotAManifest


def repair(
    store: Path | str,
    *,
    blocks: BlockStore | None = None,
    master: Path | str | None = None,
    data_as_of: datetime | None = None,
    run_id: str | None = None,
    distrustful: bool = True,
) -> Publication | None:
    """Repair what readers are pointed at; None when there was nothing to repair.

    A damaged generation is fetched from the block store, block for block, else published again
    from the master. distrustful: read every byte, not only what the file system knows.
    Errors: `GenerationDamaged` when neither can help; readers go down their ladder meanwhile.
    """
    layout = Layout(store)
    current = layout.latest()
    problem = _problem(layout, current, distrustful)
    if problem is None and current is not None:
        if _pointer_stands(layout, current):
            return None
        with publishing(layout):
            point(layout, current)
        return Publication.unchanged(layout.data(current), current)
    reasons = []
    if blocks is not None:
        try:
            return blocks.pull(store, current.generation if current else None)
        except NothingPublished as error:
            reasons.append(str(error))
    if master is not None:
        return publish(master, store, data_as_of=data_as_of, run_id=run_id)
    raise GenerationDamaged(
        f"{problem}, and there is nothing to repair it from"
        f"{f' ({reasons[0]})' if reasons else ''}; give a block store or the master, or roll back."
    )


def _problem(layout: Layout, current: Manifest | None, distrustful: bool) -> str | None:
    if current is None:
        return f"Nothing is published in {layout.root}"
    try:
        check(layout.data(current), current, distrustful=distrustful)
    except (Unusable, OSError) as error:
        return f"Generation {current.generation} is damaged or gone: {error}"
    return None


def _pointer_stands(layout: Layout, current: Manifest) -> bool:
    try:
        return layout.current() is not None and layout.link.resolve() == layout.data(current)
    except (NotAManifest, OSError):
        return False
