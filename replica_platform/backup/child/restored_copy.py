"""Copy a verified backup so that it may be put in place: journal mode, identity of an outbox."""

import hashlib
from contextlib import closing
from pathlib import Path

from replica_platform.backup.child.check import BLOCK_BYTES, check_file
from replica_platform.backup.child.messages import RestoredCopy
from replica_platform.backup.errors import Damaged
from replica_platform.core.files import fsync_file
from replica_platform.core.reports import Progress
from replica_platform.core.sqlite import sqlite3

OUTBOX_APPLICATION_ID = 0x4F555442  # "OUTB"; see `renew_identity`


def make_restored_copy(
    backup: Path, copy: Path, sha256: str, journal_mode: str, progress: Progress
) -> RestoredCopy:
    """Copy a verified backup to `copy`, give an outbox a new identity, check the result.

    Args:
        backup: The backup's file.
        copy: The file to make.
        sha256: The backup's digest, compared with that of the bytes as they are copied.
        journal_mode: The journal mode of the file that was backed up.
        progress: Called with the bytes that were copied.

    Raises:
        Damaged: The backup changed since it was verified, or the copy is not sound.
    """
    if _copy_and_hash(backup, copy, progress) != sha256:
        raise Damaged(f"{backup} changed while it was restored; nothing was put in place.")
    with closing(sqlite3.connect(copy, isolation_level=None)) as db:
        file_uuid = renew_identity(db)
        db.execute(f"pragma journal_mode={'wal' if journal_mode == 'wal' else 'delete'}")
    check = check_file(copy, drop_cache=False, progress=lambda done, total, unit: None)
    if not check.is_sound:
        raise Damaged(
            f"The restored copy of {backup} is not sound ({check.integrity}); "
            "nothing was put in place. Check the disk."
        )
    fsync_file(copy)
    return RestoredCopy(check, file_uuid)


def renew_identity(db: sqlite3.Connection) -> str | None:
    """Give an outbox a new `file_uuid` and return it; return None for any other file.

    A restored outbox continues its numbering from the past; under the old identity the target
    would take new batches for those that it has. The former identities are kept, because the
    outbox's ledger and its conflicts are looked up by them.

    The same rule is `outbox.file.renew`, which cannot be imported here: engines do not import one
    another. An outbox is a file with `OUTBOX_APPLICATION_ID`; its table `meta (key, value)` holds
    `file_uuid` and, newest first and separated by spaces, `former`. A test in
    `replica_platform_tests/backup/test_restore.py` compares the two.

    Raises:
        Damaged: The file is an outbox and holds no identity.
    """
    if db.execute("pragma application_id").fetchone() != (OUTBOX_APPLICATION_ID,):
        return None
    try:
        meta = dict(db.execute("select key, value from meta where key in ('file_uuid', 'former')"))
        current, former = meta["file_uuid"], meta.get("former", "")
    except (sqlite3.OperationalError, KeyError) as error:
        raise Damaged(
            "The backup is an outbox and has no identity (table meta, key file_uuid), so nothing "
            "was put in place; restore an older backup, or use the version that made this outbox."
        ) from error
    from uuid import uuid4  # rarely needed, and it imports half the standard library

    renewed = str(uuid4())
    db.execute("begin immediate")
    db.executemany(
        "insert into meta (key, value) values (?, ?) "
        "on conflict (key) do update set value = excluded.value",
        [("file_uuid", renewed), ("former", " ".join([current, *former.split()]))],
    )
    db.execute("commit")
    return renewed


def _copy_and_hash(source: Path, copy: Path, progress: Progress) -> str:
    size, done = source.stat().st_size, 0
    digest = hashlib.sha256()
    with source.open("rb") as reading, copy.open("wb") as writing:
        while block := reading.read(BLOCK_BYTES):
            digest.update(block)
            writing.write(block)
            done += len(block)
            progress(done, size, "bytes")
    return digest.hexdigest()
