"""The errors of a block store; each text says what is wrong and what to do next."""

from replica_platform.core.errors import TerminalError, TransientError


class BlockStoreUnavailable(TransientError):
    """The block store does not answer, or refused the request."""


class BlockStoreDamaged(TerminalError):
    """A block or a manifest in the block store is missing or damaged."""


class BlockMissing(BlockStoreDamaged):
    """A block is missing from the block store."""
