"""The method `pages`: move the blocks that differ from the file of the last pull.

It needs nothing of what is in the file: tables without a key and virtual tables are moved like any
other. The blocks are those of a snapshot on the other host, which is taken in one short
transaction. Their digests prove that both files are equal.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from replica_platform.backup.child.contents import digest_blocks
from replica_platform.backup.child.process import clone
from replica_platform.backup.errors import Damaged
from replica_platform.backup.remote.by_file import Snapshot
from replica_platform.backup.remote.connection import RemoteAgent
from replica_platform.core.reports import Progress

# Four pages of 4 KiB. A digest is 32 characters, so 500 MB are compared by 1 MB.
BLOCK_BYTES = 1 << 14
# Above this part of a file it is quicker to move all of it.
MOST_DIFFERING = 0.5


def copy_pages(
    agent: RemoteAgent, snapshot: Snapshot, previous: Path, copy: Path, progress: Progress
) -> int | None:
    """Make `copy` equal to the snapshot; return how many blocks were compared.

    Args:
        agent: The other host.
        snapshot: What was taken there.
        previous: The file of the last pull, from which `copy` starts; it need not exist.
        copy: The file to make.
        progress: Called with the bytes that were moved.

    Returns:
        The number of blocks; None where so much differs that the file is to be moved.

    Raises:
        Damaged: A block changed on its way.
    """
    if not previous.exists():
        return None
    with ThreadPoolExecutor(1, "clone") as beside:
        cloning = beside.submit(clone, previous.resolve(), copy, BLOCK_BYTES)
        theirs: list[str] = agent.ask("digest_blocks", size=BLOCK_BYTES)
        ours = cloning.result()
    ours += [""] * (len(theirs) - len(ours))
    differing = [number for number, digest in enumerate(theirs) if ours[number] != digest]
    if len(differing) > MOST_DIFFERING * len(theirs):
        return None
    _receive(agent, snapshot["bytes"], differing, theirs, copy, progress)
    return len(theirs)


def _receive(
    agent: RemoteAgent,
    size: int,
    numbers: list[int],
    digests: list[str],
    copy: Path,
    progress: Progress,
) -> None:
    total = sum(min(BLOCK_BYTES, size - number * BLOCK_BYTES) for number in numbers)
    awaited: Iterator[int] = iter(numbers)
    done = 0
    with copy.open("r+b", 0) as file:
        file.truncate(size)

        def write(block: bytes) -> None:
            nonlocal done
            number = next(awaited)
            if digest_blocks(BytesIO(block), BLOCK_BYTES) != [digests[number]]:
                raise Damaged(
                    "A block changed on its way (its digest differs); nothing was kept. Try again."
                )
            os.pwrite(file.fileno(), block, number * BLOCK_BYTES)
            done += len(block)
            progress(done, total, "bytes")

        agent.receive("send_blocks", total, write, block_bytes=BLOCK_BYTES, numbers=numbers)
    progress(size, size, "bytes")  # moved, or equal before
