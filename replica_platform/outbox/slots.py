"""Where outbox files are, and which process may write each: folders, file systems, slot locks.

Each worker slot has its own file: eight processes on one file waited up to 2.5 s for one another,
with a file each 18 ms. The lock is on a separate file, because a lock on the database itself
would interfere with SQLite's.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from replica_platform.core.locks import try_lock
from replica_platform.outbox.errors import NetworkFileSystem, SlotLocked
from replica_platform.outbox.file import is_outbox

NETWORK_FILE_SYSTEMS = frozenset(
    (
        *("9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gfs2"),
        *("lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb2", "smb3", "smbfs", "vboxsf"),
    )
)
VOLATILE_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})


def outbox_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that `paths` name; a folder stands for its outboxes, sorted by name.

    Databases of other applications and backups in a folder are left out: draining a backup
    changes it, so that it no longer matches its manifest.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = database_files([path])
            files += [file for file in found if not _is_backup(file) and is_outbox(file)]
        else:
            files.append(path)
    return files


def database_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files that `paths` name; a folder stands for its `*.db`, none of them opened."""
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(path.glob("*.db")) if path.is_dir() else [path]
    return files


def _is_backup(path: Path) -> bool:
    """Return whether a backup's manifest is beside the file; a restored copy has none."""
    return path.with_name(path.name + ".json").exists()


def file_system_of(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Return the name of the file system that holds `folder`; None if the system lists none."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        head, _, tail = line.partition(" - ")
        if head.split()[2] == wanted:
            return tail.split()[0]
    return None


def refuse_network_file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> None:
    """Refuse a folder where SQLite's locks and shared memory are unreliable.

    Raises:
        NetworkFileSystem: The folder is on a network file system.
    """
    kind = file_system_of(folder, mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise NetworkFileSystem(
            f"{folder} is on {kind}, where SQLite loses commits; "
            "put the outbox in a folder on a disk of this machine."
        )


@contextmanager
def drain_lock(path: Path) -> Iterator[bool]:
    """Hold the lock of the drains of `path` during the block; yield False if another has it.

    The file is on a disk of this machine, and so are its drains. A lock in the target would need a
    session, which a transaction pooler does not give. The lock avoids duplicate work; correctness
    does not depend on it.
    """
    try:
        descriptor = os.open(f"{path}.drain", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:  # a full disk, which the drain is to relieve
        yield True
        return
    try:
        yield try_lock(descriptor)
    finally:
        os.close(descriptor)


def lock_slot(path: Path) -> int:
    """Make this process the only writer of `path`; return the descriptor that holds the lock.

    The lock lasts until the descriptor is closed or the process ends, however it ends.

    Raises:
        SlotLocked: Another process holds the lock.
    """
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        is_ours = try_lock(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    if not is_ours:
        holder = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise SlotLocked(
            f"Process {holder or 'unknown'} already writes {path}; give each worker its own file, "
            "or let Outbox.claim(folder) find a free one."
        )
    os.truncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor
