"""The replica engine's errors; each text says what is wrong and what to do next.

Importable without DuckDB. `translate_errors` is where the operating system's refusals become these
errors; `Master` translates DuckDB's. The errors of a block store are those of `blocks.errors`.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replica_platform.core.errors import TerminalError, TransientError


class MasterBusy(TransientError):
    """Another process is using the master; the text names it."""


class MasterChanging(TransientError):
    """The master changed during every attempt to copy it."""


class MasterOpenHere(TerminalError):
    """This process has the master open, and reading its file would drop DuckDB's lock on it."""


class MasterMissing(TerminalError):
    """The master file does not exist."""


class MasterDenied(TerminalError):
    """This user lacks permission to read or write the master."""


class MasterDamaged(TerminalError):
    """The master is not a sound DuckDB file, or its write-ahead log cannot be checkpointed."""


class MasterEncrypted(TerminalError):
    """The master is encrypted, and encrypted masters are not supported."""


class WrongLineage(TerminalError):
    """The master is not the database that the store's generations came from."""


class StoreBusy(TransientError):
    """Another process is publishing into this store; the text names it."""


class StoreFull(TransientError):
    """The disk, a quota or a file size limit leaves no space for another generation."""


class StoreDenied(TerminalError):
    """This user lacks a permission that the store needs."""


class PurposeWrong(TerminalError):
    """A purpose is written incorrectly, or names what the master does not have."""


class RuleWrong(TerminalError):
    """The query of a rule, or of the age of the data, cannot be run."""


class WrongStore(TerminalError):
    """The store's generations belong to another purpose, or to the whole master."""


class CandidateDamaged(TransientError):
    """The copy differs from the master; it was deleted and readers kept their generation."""


class CandidateGone(TransientError):
    """The candidate was released, discarded or overtaken by another publication."""


class NothingPublished(TerminalError):
    """The store has no generation that can be used for this."""


class GenerationDamaged(TerminalError):
    """A published generation's file differs from its manifest."""


class TableUnknown(TerminalError):
    """No table of the generations has the name that was given."""


class PointerMoved(TransientError):
    """Another process moved the block store's pointer at the same time."""


class ReplicaUnavailable(TransientError):
    """Every fallback of the reader failed, and the caller gave no default."""


@contextmanager
def translate_errors(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals below `folder` into this engine's errors.

    Raises:
        StoreFull: The disk, a quota or a file size limit was reached.
        StoreDenied: A permission is missing.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            # Retiring generations helps a full disk. It does not help against a limit, which
            # the disk's free space does not show.
            advice = (
                "Free space there, or keep fewer generations, and publish again."
                if error.errno == errno.ENOSPC
                else "Free space there, or raise the limit, and publish again."
            )
            raise StoreFull(
                f"No room for another generation in {folder} ({error.strerror}); nothing was "
                f"published and readers keep theirs. {advice}"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreDenied(
                f"This user may not use {error.filename or folder} ({error.strerror}); nothing "
                "was published and readers keep theirs. Give the publisher write permission on "
                "the store, and publish again."
            ) from error
        raise
