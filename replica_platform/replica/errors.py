"""What can be wrong between master and readers; each text says what, and what to do next."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replica_platform.core.errors import TerminalError, TransientError


class MasterBusy(TransientError):
    """Somebody else writes the master; the text names the process."""


class MasterChanging(TransientError):
    """The master changed under each attempt to copy it."""


class MasterOpenHere(TerminalError):
    """This process still has the master open, so reading its file would drop DuckDB's lock."""


class MasterMissing(TerminalError):
    """There is no master file."""


class MasterDenied(TerminalError):
    """The operating system does not permit this user to read or write the master."""


class MasterDamaged(TerminalError):
    """The master is not a sound DuckDB file, or its write-ahead log cannot be taken in."""


class WrongLineage(TerminalError):
    """The master is not the database that the store's generations came from."""


class StoreBusy(TransientError):
    """Another process publishes into this store; the text names it."""


class StoreFull(TransientError):
    """The disk, a quota or a file size limit leaves no room for another generation."""


class StoreDenied(TerminalError):
    """The operating system does not permit what the store needs."""


class PurposeWrong(TerminalError):
    """A purpose replica asks for what the master does not have, or is written wrongly."""


class WrongStore(TerminalError):
    """The store's generations are those of another purpose, or of the whole master."""


class CandidateDamaged(TransientError):
    """The copy is not what the master was; it was thrown away and readers kept their generation."""


class CandidateGone(TransientError):
    """The candidate was released, discarded or overtaken by another publication."""


class NothingPublished(TerminalError):
    """The store holds no generation that can be used for this."""


class GenerationDamaged(TerminalError):
    """A published generation's file is not what its manifest says."""


class BlockStoreUnavailable(TransientError):
    """The folder or bucket of blocks does not answer, or refuses."""


class BlockStoreDamaged(TerminalError):
    """A block or a manifest there is missing or not what its name says."""


class BlockMissing(BlockStoreDamaged):
    """A block is not in the block store."""


class PointerMoved(TransientError):
    """Somebody else moved the block store's pointer at the same time."""


class ReplicaUnavailable(TransientError):
    """No rung of the ladder has an answer, and the caller gave no default."""


@contextmanager
def explaining(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals below `folder` into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            # Room for the next publication is made by retiring only where the disk shows the
            # lack; a quota or a size limit does not show there.
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
                f"{error.filename or folder} may not be used by this user ({error.strerror}); "
                "nothing was published and readers keep theirs. Give the publisher write "
                "permission on the store, and publish again."
            ) from error
        raise
