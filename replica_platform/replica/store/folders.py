"""The store's folders: making them, and removing what a killed publisher left."""

import secrets
import shutil
from pathlib import Path

from replica_platform.core.files import fsync_dir
from replica_platform.replica.errors import translate_errors
from replica_platform.replica.store.layout import Layout


def make_folders(layout: Layout) -> None:
    """Make the store's folders.

    Raises:
        StoreDenied: This user may not make them.
    """
    with translate_errors(layout.root):
        for folder in (layout.root, layout.generations, layout.candidates, layout.spares):
            folder.mkdir(parents=True, exist_ok=True)


def building_path(layout: Layout) -> Path:
    """Return a new name to build a candidate under.

    New each time, because the child of a killed publisher may still write under the old one.
    """
    return layout.candidates / f".tmp-building-{secrets.token_hex(4)}.duckdb"


def clear_orphans(layout: Layout) -> None:
    """Remove temporary files, candidates and half-released generations. Hold the store's lock."""
    for folder in (layout.root, layout.generations, layout.spares):
        for path in folder.glob(".tmp-*"):
            path.unlink()
    shutil.rmtree(layout.candidates, ignore_errors=True)
    layout.candidates.mkdir(exist_ok=True)
    current = layout.latest()
    for path in layout.generations.glob("*.duckdb"):
        is_current = current is not None and path.name == current.file
        if not path.with_suffix(".json").exists() and not is_current:
            path.unlink()
            path.with_suffix(".lease").unlink(missing_ok=True)
    for suffix in (".lease", ".withheld", ".damaged"):
        for path in layout.generations.glob(f"*{suffix}"):
            if not path.with_suffix(".duckdb").exists():
                path.unlink()
    fsync_dir(layout.generations)
