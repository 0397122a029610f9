"""Restore a backup: put it in place as a database file.

Verify the backup, copy it under a temporary name, check the copy, rename it. The file that was at
the target is kept beside it; unsaved changes there are never thrown away.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from replica_platform.backup.blocks.contents import content_of
from replica_platform.backup.child.messages import RestoredCopy
from replica_platform.backup.child.process import make_restored_copy
from replica_platform.backup.destination import (
    prepare,
    remove_empty_sidecars,
    replacing_database,
    require_idle,
    resolve,
)
from replica_platform.backup.errors import Damaged, TargetExists
from replica_platform.backup.manifest import Backup, about_unchecked
from replica_platform.backup.verify import compare_content, require_manifest
from replica_platform.blocks.errors import BlockStoreDamaged
from replica_platform.core.reports import DoneReport, Progress


@dataclass(frozen=True)
class Restored(DoneReport):
    """What a restore put in place.

    Attributes:
        file: The restored database.
        backup: The backup that it was made from.
        kept: Where the database that was there before is now; None if there was none.
        bytes: Size of the restored database.
        tables: Rows of each table.
        file_uuid: The new identity of a restored outbox; None for any other file.
        unchecked: Why SQLite could not check all of the database; None if it did.
        pending: Rows that a restored outbox holds as undelivered; None for any other file.
        delivered_again: Those of them that the replaced file has as delivered: the next drain
            delivers them again. None where no state of the same outbox was replaced.
        only_in_kept: Undelivered rows that only the replaced file has; None likewise.
        seconds: How long the restore took.
        sentence: What was restored, and what was kept.
    """

    file: Path
    backup: Path
    kept: Path | None
    bytes: int
    tables: dict[str, int | None]
    file_uuid: str | None
    unchecked: str | None
    pending: int | None
    delivered_again: int | None
    only_in_kept: int | None
    seconds: float
    sentence: str


def restore(
    backup: Path, to: Path, *, replace: bool = True, progress: Progress | None = None
) -> Restored:
    """Put a backup in place as `to`: verified, copied, checked again, renamed.

    An outbox gets a new `file_uuid`, because its numbering continues from the past. The journal
    mode is that of the source. Owner and mode are those of the file that was there; behind a
    symbolic link, the file that it names is replaced. The replaced file is kept beside the target.

    Args:
        backup: The backup's file; its manifest lies beside it.
        to: The database to make or replace.
        replace: Whether a file at `to` may be replaced.
        progress: Called with the bytes that were copied.

    Returns:
        What was put in place, and where the previous file is kept.

    Raises:
        TargetExists: There is a file at the target, and `replace` is False.
        Busy: The target is open in a process of this machine.
        Unsaved: A WAL or journal beside the target holds changes.
        Damaged: The backup is not sound.
        Unreadable: The backup has no manifest, or the previous owner cannot be kept.
        NoRoom: The target's disk has no space for the copy.
        ChildFailed: The child process ended without an answer.
        KeyMissing: The backup is encrypted with a key that the environment does not have.
        BlockStoreUnavailable: The block store refused a request.
    """
    began = time.perf_counter()
    backup, to = backup.absolute(), resolve(to)
    known = require_manifest(backup)
    if to.exists() and not replace:
        raise TargetExists(
            f"{to} exists, so nothing was restored; give another path, or `--replace` to replace "
            "it (it is then kept beside the restored one)."
        )
    prepare(to)
    with (
        _verified_content(known, to.parent) as content,
        replacing_database(to, new_mode=known.manifest.stat().st_mode & 0o664) as copy,
    ):
        restored = make_restored_copy(
            content.resolve(),
            copy,
            previous=to,
            sha256=known.sha256,
            journal_mode=known.journal_mode,
            progress=progress,
        )
        require_idle(to)
        kept = _keep_previous(to)
        remove_empty_sidecars(to)
    return Restored(
        file=to,
        backup=backup,
        kept=kept,
        bytes=to.stat().st_size,
        tables=restored.check.tables,
        file_uuid=restored.file_uuid,
        unchecked=restored.check.unchecked,
        pending=restored.check.pending,
        delivered_again=restored.delivered_again,
        only_in_kept=restored.only_in_previous,
        seconds=round(time.perf_counter() - began, 4),
        sentence=(
            f"{to} is {known.file.name} again: {len(known.tables)} tables, {known.rows:,} rows, "
            f"as of {known.taken_at:%Y-%m-%d %H:%M:%S} UTC."
            + about_unchecked(restored.check.unchecked)
            + (f" What was there before is {kept}." if kept else "")
            + _about_outbox(restored, kept)
        ),
    )


@contextmanager
def _verified_content(known: Backup, scratch: Path) -> Iterator[Path]:
    """Yield the file with a backup's content, which was just compared with the manifest."""
    refused = "Nothing was restored; choose an older one."
    try:
        with content_of(known, scratch) as content:
            outcome = compare_content(known, content)
            if not outcome.ok:
                raise Damaged(f"{outcome.sentence} {refused}")
            yield content
    except BlockStoreDamaged as error:
        raise Damaged(f"{known.file.name} cannot be relied on: {error} {refused}") from error


def _about_outbox(restored: RestoredCopy, kept: Path | None) -> str:
    if restored.check.pending is None:
        return ""
    sentence = (
        f" The next drain delivers {restored.check.pending:,} rows that this copy holds as "
        "undelivered"
    )
    if restored.delivered_again is None:
        sentence += "; those that were delivered since are delivered again"
    elif restored.delivered_again:
        sentence += (
            f"; {restored.delivered_again:,} of them were delivered since and are delivered again"
        )
    sentence += ". The target keeps one of each id."
    if restored.only_in_previous:
        sentence += (
            f" {restored.only_in_previous:,} undelivered rows are only in {kept}; "
            "drain that file too."
        )
    return sentence


def _keep_previous(to: Path) -> Path | None:
    if not to.exists():
        return None
    stamp = datetime.now(UTC)
    kept = to.with_name(f"{to.stem}_before_restore_{stamp:%Y%m%d_%H%M%S_%f}{to.suffix}")
    # A second name first, so that there is a whole file at `to` at every moment.
    os.link(to, kept)
    return kept
