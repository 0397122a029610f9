"""Bring a backup back to life as a database file.

Verified first, copied under a temporary name, checked once more, renamed. What lies at the
target is kept beside it; what was never folded into it is never thrown away unasked.
"""

import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from stat import S_IMODE
from typing import Any

from replica_platform.backup.child.process import in_child
from replica_platform.backup.destination import clear_killed, must_be_idle, remove_empty_sidecars
from replica_platform.backup.errors import Damaged, Unreadable
from replica_platform.backup.manifest import manifest_of, read_manifest
from replica_platform.backup.verify import reread
from replica_platform.core.files import replacing
from replica_platform.core.reports import Progress


@dataclass(frozen=True)
class Restored:
    """What a restore put in place."""

    file: Path
    backup: Path
    kept: Path | None
    """Where the database that was there before lies now."""
    bytes: int
    tables: dict[str, int | None]
    file_uuid: str | None
    """The new identity of a restored outbox; None for any other file."""
    seconds: float
    sentence: str

    @property
    def ok(self) -> bool:
        """Always: a restore that is not whole raises instead."""
        return True

    def as_dict(self) -> dict[str, Any]:
        """The same in plain JSON types."""
        paths = {"file": str(self.file), "backup": str(self.backup)}
        return {**asdict(self), **paths, "kept": str(self.kept) if self.kept else None}


def restore(backup: Path, to: Path, *, progress: Progress | None = None) -> Restored:
    """Put a backup in place as `to`: verified, checked once more, renamed.

    Refuses a target that is open somewhere (`Busy`) or has changes that were never folded in
    (`Unsaved`), and a backup that is not sound (`Damaged`). An outbox gets a new `file_uuid`,
    because its sequence goes on from the past; the journal mode is that of the source. Owner and
    mode are those of the file that was there; behind a symbolic link, its target is replaced.
    """
    began = time.perf_counter()
    backup, to = backup.absolute(), to.absolute()
    if to.is_symlink():
        # As SQLite does: it keeps the sidecars beside the real file, too.
        to = to.resolve()
    known = read_manifest(manifest_of(backup))
    if known is None:
        raise Unreadable(
            f"{backup} has no readable manifest ({manifest_of(backup).name}), so nobody knows "
            "whether it is sound; choose a backup that `replica backup --stats-only` counts."
        )
    outcome = reread(known)
    if not outcome.ok:
        raise Damaged(f"{outcome.sentence} Nothing was restored; choose an older one.")
    to.parent.mkdir(parents=True, exist_ok=True)
    clear_killed(to)
    must_be_idle(to)
    replaced = to.stat() if to.exists() else None
    mode = S_IMODE(replaced.st_mode) if replaced else backup.stat().st_mode & 0o664
    kept = None
    with replacing(to, mode) as fresh:
        facts = in_child(
            "revive",
            progress,
            backup=str(known.file.resolve()),
            to=str(fresh),
            sha256=known.sha256,
            journal_mode=known.journal_mode,
        )
        if replaced:
            _give_to(fresh, replaced, to)
        must_be_idle(to)
        kept = _keep_the_old(to)
        remove_empty_sidecars(to)
    rows = sum(count or 0 for count in facts["tables"].values())
    return Restored(
        file=to,
        backup=backup,
        kept=kept,
        bytes=to.stat().st_size,
        tables=facts["tables"],
        file_uuid=facts["file_uuid"],
        seconds=round(time.perf_counter() - began, 4),
        sentence=(
            f"{to} is {known.file.name} again: {len(facts['tables'])} tables, {rows:,} rows, "
            f"as of {known.taken_at:%Y-%m-%d %H:%M:%S} UTC."
            + (f" What was there before is {kept}." if kept else "")
        ),
    )


def _give_to(fresh: Path, replaced: os.stat_result, to: Path) -> None:
    """Give the new file the owner of the one that it replaces, who could not write to it else."""
    try:
        os.chown(fresh, replaced.st_uid, replaced.st_gid)
    except PermissionError as error:
        raise Unreadable(
            f"{to} belongs to user {replaced.st_uid} and group {replaced.st_gid}, and this user "
            "may not give a file to them, so nothing was restored; run the restore as root, or "
            "move that file away first to become the owner of the new one."
        ) from error


def _keep_the_old(to: Path) -> Path | None:
    if not to.exists():
        return None
    stamp = datetime.now(UTC)
    kept = to.with_name(f"{to.stem}_before_restore_{stamp:%Y%m%d_%H%M%S_%f}{to.suffix}")
    # A second name first, so that there is a whole file at `to` at every moment.
    os.link(to, kept)
    return kept
