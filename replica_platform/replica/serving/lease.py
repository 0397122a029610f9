"""The lock by which a reader keeps its generation; standard library only."""

import os
from typing import Self

from replica_platform.core import locks
from replica_platform.replica.store.integrity import Unusable
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest


class Lease:
    """A shared lock on a generation's lease file: while it is held, the generation stays."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    @classmethod
    def take(cls, layout: Layout, manifest: Manifest) -> Self:
        """Take the lease of a generation.

        Raises:
            Unusable: The generation is gone or being retired.
        """
        try:
            fd = os.open(layout.lease(manifest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            lease = cls(None)
        else:
            lease = cls(fd)
            if not locks.try_lock(fd, shared=True):
                lease.release()
                raise Unusable(f"generation {manifest.generation} is being retired", transient=True)
        # After the lock, because a retired generation loses its name before its lease.
        if not layout.data(manifest).exists():
            lease.release()
            raise Unusable(f"the file of generation {manifest.generation} is gone", transient=True)
        return lease

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
