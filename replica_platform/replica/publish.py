"""Publication, top to bottom: from a master at rest to a generation that readers can open.

Lock the store, checkpoint the master, compare headers, reserve space, copy (see `copy_master`),
check that the master did not change, fsync, verify every byte and open the copy in a child
process; then, in `store.candidate`: rename, manifest, pointer, link. Whenever the publisher is
killed, readers keep what they have and the next publication clears up.
"""

from dataclasses import replace
from pathlib import Path
from typing import Unpack

from replica_platform.core.files import fsync_dir
from replica_platform.replica.copy.blocks import file_digest
from replica_platform.replica.copy_master import MasterCopier, MasterCopy
from replica_platform.replica.errors import CandidateDamaged, translate_errors
from replica_platform.replica.master import Master
from replica_platform.replica.options import PublishKeywords, PublishOptions, StepTimer
from replica_platform.replica.probe.process import Content
from replica_platform.replica.probe.verify_copy import verify_copy
from replica_platform.replica.store.candidate import Candidate, Publication
from replica_platform.replica.store.folders import building_path, clear_orphans, make_folders
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, Seal, file_name, now, readers_catalog
from replica_platform.replica.store.ownership import assert_own_store
from replica_platform.replica.store.pointer import store_lock
from replica_platform.replica.store.spare import remove_spares


def publish(
    master: Path | str, store: Path | str, **keywords: Unpack[PublishKeywords]
) -> Publication:
    """Publish a master into a store as a new generation.

    Args:
        master: The DuckDB file that the batch writes.
        store: The store's folder; made if absent.
        **keywords: `PublishOptions` by name:
            keep, min_age_s: how many generations stay (3), and how long each does at least, in
            seconds (60); a purpose has its own defaults.
            data_as_of: the time that the data describes; only the caller knows it.
            run_id: the run that publishes, for the manifest.
            progress: told the blocks that are copied.
            patience_s: how long to wait, in seconds, for a writer of the master (30).
            new_lineage: accept a master that is not the database the last generation came from.
            required: tables that must exist and are read to the end, `*` for all. A file of at
            most 32 MiB is always read to the end; of a larger one, the first rows of each table.
            Every block's checksum is compared in any case.
            purpose: build this part of the master instead of copying it.
            max_age_s: the age in seconds beyond which `status` calls the data stale.
            step: told the name of each step before it begins.
            link: the name of the link to the newest file in the store (`stock_data_replica.db`).

    Returns:
        What was published; `how` is `unchanged` where the master has nothing new.

    Raises:
        PlatformError: One of the classes in `replica.errors`; readers keep what they have.
    """
    return prepare(master, store, **keywords).release(keywords.get("step"))


def prepare(
    master: Path | str, store: Path | str, **keywords: Unpack[PublishKeywords]
) -> Candidate:
    """Build and verify the next generation without showing it to readers.

    A candidate that still waits in the store is deleted.

    Args:
        master: The DuckDB file that the batch writes.
        store: The store's folder; made if absent.
        **keywords: As for `publish`.

    Returns:
        The candidate, to audit and then to release or to discard.

    Raises:
        PlatformError: One of the classes in `replica.errors`; readers keep what they have.
    """
    options = PublishOptions(**keywords)
    layout = Layout(store)
    steps = StepTimer(options.step)
    steps("lock")
    make_folders(layout)
    with store_lock(layout), translate_errors(layout.root):
        assert_own_store(layout, options.purpose_name)
        steps("clear")
        clear_orphans(layout)
        current = layout.latest()
        target = building_path(layout)
        verified = _copy_and_verify(
            layout, current, target, options, steps, Master(master, patience_s=options.patience_s)
        )
        if verified is not None:
            steps("name")
            copy, content = verified
            manifest = _describe(layout, copy, content, current, options, Path(master).name)
            manifest = _name(layout, target, manifest)
        else:
            copy = None
            assert current is not None
            manifest = _confirm(layout, current, options)
        candidate = Candidate(
            store=layout.root,
            manifest=manifest,
            how=copy.file.how if copy else "unchanged",
            blocks_written=copy.file.blocks_written if copy else 0,
            blocks_read=copy.file.scan.read if copy else 0,
            compared_all=copy.difference.reason if copy and copy.difference else "",
            steps=steps.finish(),
            keep=options.retention.keep,
            min_age_s=options.retention.min_age_s,
            built_on=current.generation if current else None,
        )
        candidate.save()
    return candidate


def _copy_and_verify(
    layout: Layout,
    current: Manifest | None,
    target: Path,
    options: PublishOptions,
    steps: StepTimer,
    master: Master,
) -> tuple[MasterCopy, Content] | None:
    """Copy the master and verify the copy; return None when readers have its state already.

    A copy that was patched into a damaged spare is thrown away, and the master copied whole.
    """
    while True:
        with MasterCopier(layout, current, target, options, steps) as copier:
            copy = copier.copy(master)
            if copy is None:
                return None
            try:
                content = verify_copy(
                    target,
                    copy.file.scan,
                    copy.probe,
                    readers_catalog(master.path.name),
                    options.required,
                    steps,
                    copy.written,
                )
            except CandidateDamaged:
                if copy.file.how != "patch":
                    raise
                remove_spares(layout)
            else:
                return copy, content


def _confirm(layout: Layout, current: Manifest, options: PublishOptions) -> Manifest:
    """Return the current manifest, stamped: the master has nothing newer."""
    return replace(
        current,
        confirmed_at=now(),
        data_as_of=options.data_as_of or current.data_as_of,
        max_age_s=options.stale_after_s,
        link=options.link,
        seal=Seal.of(layout.data(current)),
    )


def _describe(
    layout: Layout,
    copy: MasterCopy,
    content: Content,
    current: Manifest | None,
    options: PublishOptions,
    master: str,
) -> Manifest:
    """Return the manifest of a verified copy."""
    digests = copy.file.scan.digests
    digest = file_digest(digests)
    generation = max([*layout.numbers(), current.generation if current else 0], default=0) + 1
    moment = now()
    return Manifest(
        generation=generation,
        file=file_name(generation, digest, master),
        bytes=copy.bytes,
        digest=digest,
        digests="".join(digests),
        lineage=copy.lineage,
        storage=copy.header.storage,
        duckdb=copy.header.library,
        tables=content.tables,
        master=master,
        broken_views=content.broken_views,
        published_at=moment,
        confirmed_at=moment,
        parent=current.generation if current else None,
        data_as_of=options.data_as_of,
        run_id=options.run_id,
        purpose=options.purpose_name,
        recipe=options.recipe,
        max_age_s=options.stale_after_s,
        link=options.link,
        read_at=copy.read_at or moment,
    )


def _name(layout: Layout, target: Path, manifest: Manifest) -> Manifest:
    """Give the copy its name among the candidates, and seal it."""
    path = layout.candidates / manifest.file
    target.replace(path)
    fsync_dir(layout.candidates)
    return replace(manifest, seal=Seal.of(path))
