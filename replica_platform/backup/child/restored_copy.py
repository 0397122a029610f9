"""Copy a verified backup so that it may be put in place: journal mode, identity of an outbox."""

import hashlib
from contextlib import closing
from pathlib import Path

from replica_platform.backup.child.check import BLOCK_BYTES, check_file
from replica_platform.backup.child.messages import RestoredCopy
from replica_platform.backup.child.outbox import compare_with_replaced, renew_identity
from replica_platform.backup.errors import Damaged
from replica_platform.core.reports import Progress
from replica_platform.core.sqlite import sqlite3


def make_restored_copy(
    backup: Path,
    copy: Path,
    previous: Path,
    sha256: str,
    journal_mode: str,
    progress: Progress,
) -> RestoredCopy:
    """Copy a verified backup to `copy`, give an outbox a new identity, check the result.

    Args:
        backup: The backup's file.
        copy: The file to make.
        previous: The file that is to be replaced, which no program has open; it need not exist.
        sha256: The backup's digest, compared with that of the bytes as they are copied.
        journal_mode: The journal mode of the file that was backed up.
        progress: Called with the bytes that were copied.

    Raises:
        Damaged: The backup changed since it was verified, or the copy is not sound.
    """
    if _copy_and_hash(backup, copy, progress) != sha256:
        raise Damaged(f"{backup} changed while it was restored; nothing was put in place.")
    with closing(sqlite3.connect(copy, isolation_level=None)) as db:
        delivered_again, only_in_previous = compare_with_replaced(db, previous)
        file_uuid = renew_identity(db)
        db.execute(f"pragma journal_mode={'wal' if journal_mode == 'wal' else 'delete'}")
    check = check_file(
        copy, drop_cache=False, progress=lambda done, total, unit: None, make_durable=True
    )
    if not check.is_sound:
        raise Damaged(
            f"The restored copy of {backup} is not sound ({check.integrity}); "
            "nothing was put in place. Check the disk."
        )
    return RestoredCopy(check, file_uuid, delivered_again, only_in_previous)


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
