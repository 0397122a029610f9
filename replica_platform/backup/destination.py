"""The file that a restore or a pull replaces: idle, no unsaved changes, no sidecars left over.

SQLite applies a `-wal` beside a file silently, even one that belongs to another file, and
`integrity_check` then says ok. So sidecars are examined before a file is put in place.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE

from replica_platform.backup.errors import Busy, Unreadable, Unsaved
from replica_platform.core.files import fsync_dir, replacing

SIDECARS = ("-wal", "-journal", "-shm")


def resolve(to: Path) -> Path:
    """Return the absolute path of the target; of a symbolic link, the file that it names.

    SQLite keeps the sidecars beside the file that a link names, too.
    """
    return to.resolve() if to.is_symlink() else to.absolute()


def prepare(to: Path, *, allow_readers: bool = False) -> None:
    """Make the target's folder, remove what killed runs left in it, require an idle target.

    Raises:
        Busy: A process has the target open.
        Unsaved: A WAL or journal beside it holds changes.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_copies(to)
    require_idle(to, allow_readers=allow_readers)


@contextmanager
def replacing_database(to: Path, new_mode: int) -> Iterator[Path]:
    """Yield a temporary path; after the block it becomes the target, with owner and mode of that.

    Args:
        to: The file to make or replace.
        new_mode: The mode of a file that replaces none.

    Raises:
        Unreadable: This user may not give a file to the owner of the one that is replaced.
    """
    replaced = to.stat() if to.exists() else None
    with replacing(to, S_IMODE(replaced.st_mode) if replaced else new_mode) as copy:
        if replaced:
            # Before the copy is made, so that nothing has happened yet where this is refused.
            copy.touch(mode=0o600)
            _keep_owner(copy, replaced, to)
        yield copy


def _keep_owner(copy: Path, replaced: os.stat_result, to: Path) -> None:
    """Give the copy the owner of the file that it replaces, who could not write to it otherwise."""
    try:
        os.chown(copy, replaced.st_uid, replaced.st_gid)
    except PermissionError as error:
        raise Unreadable(
            f"{to} belongs to user {replaced.st_uid} and group {replaced.st_gid}, and this user "
            "may not give a file to them, so it was not replaced; run the command as root, or "
            "move that file away first to become the owner of the new one."
        ) from error


def require_idle(to: Path, *, allow_readers: bool = False) -> None:
    """Require that no process has the target open and no unsaved changes lie beside it.

    Args:
        to: The file that is to be replaced.
        allow_readers: Accept processes that only read; they keep the old file.

    Raises:
        Busy: A process has the target open.
        Unsaved: A WAL or journal beside it holds changes.
    """
    # A program that writes has a sidecar open too.
    for path in _sidecars(to) if allow_readers or not to.exists() else [to, *_sidecars(to)]:
        holder = _process_with_open(path)
        if holder:
            raise Busy(
                f"{to} is open in process {holder}; stop that program, then try again, "
                "or choose another path."
            )
    for path in _sidecars(to):
        if path.stat().st_size and not path.name.endswith("-shm"):
            raise Unsaved(
                f"{path} holds changes that are not in {to.name} yet, and a new file would lose "
                "or mix them. Open and close the database once with its program to fold them "
                "in, or move both files away, then try again."
            )


def remove_empty_sidecars(to: Path) -> None:
    """Remove the sidecars that `require_idle` found empty, before the new file gets its name."""
    for path in _sidecars(to):
        path.unlink()
    fsync_dir(to.parent)


def _sidecars(file: Path) -> list[Path]:
    """Return the files that SQLite keeps beside an open database, as far as they exist."""
    paths = (file.with_name(file.name + suffix) for suffix in SIDECARS)
    return [path for path in paths if path.exists()]


def _remove_abandoned_copies(to: Path) -> None:
    temporary = re.compile(rf"\.tmp-{re.escape(to.name)}-(\d+)-.*")
    for path in to.parent.iterdir():
        found = temporary.fullmatch(path.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            path.unlink(missing_ok=True)


def _process_with_open(path: Path) -> int | None:
    """Return a process of this machine that has the file open, among those we may inspect."""
    wanted = path.stat()
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            for entry in list(descriptors.iterdir()):
                with suppress(OSError):
                    found = entry.stat()
                    if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                        return int(descriptors.parent.name)
    return None
