"""The place where a restore or a pull puts a file: idle, nothing unsaved, nothing left over.

A `-wal` that lies beside a file that it does not belong to is applied to it, silently, and
`integrity_check` says ok. So sidecars are looked at before a file is put in place, never after.
"""

import re
from contextlib import suppress
from pathlib import Path

from replica_platform.backup.errors import Busy, Unsaved
from replica_platform.core.files import fsync_dir


def sidecars(file: Path) -> list[Path]:
    """The files that SQLite keeps beside a database while it is open, those that exist."""
    names = (file.with_name(file.name + suffix) for suffix in ("-wal", "-journal", "-shm"))
    return [path for path in names if path.exists()]


def clear_killed(to: Path) -> None:
    """Remove the temporary copies that a killed run for this very file left."""
    of_ours = re.compile(rf"\.tmp-{re.escape(to.name)}-(\d+)-.*")
    for path in to.parent.iterdir():
        found = of_ours.fullmatch(path.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            path.unlink(missing_ok=True)


def must_be_idle(to: Path, readers: bool = False) -> None:
    """Nobody has the target open, and nothing unsaved lies beside it.

    With `readers` it may be open as long as nobody could write to it without a sidecar's
    being there: they go on reading the file that it was.
    """
    for path in sidecars(to) if readers or not to.exists() else [to, *sidecars(to)]:
        holder = _who_has_open(path)
        if holder:
            raise Busy(
                f"{to} is open in process {holder}; stop that program, then try again, "
                "or choose another path."
            )
    for path in sidecars(to):
        if path.stat().st_size and not path.name.endswith("-shm"):
            raise Unsaved(
                f"{path} holds changes that are not in {to.name} yet, and a new file would lose "
                "or mix them. Open and close the database once with its program to fold them "
                "in, or move both files away, then try again."
            )


def _who_has_open(path: Path) -> int | None:
    """A process of this machine that has the file open, as far as we may look."""
    wanted = path.stat()
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            for entry in list(descriptors.iterdir()):
                with suppress(OSError):
                    seen = entry.stat()
                    if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino):
                        return int(descriptors.parent.name)
    return None


def remove_empty_sidecars(to: Path) -> None:
    """Remove what `must_be_idle` found empty, just before the new file gets its name."""
    for path in sidecars(to):
        path.unlink()
    fsync_dir(to.parent)
