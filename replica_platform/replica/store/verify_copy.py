"""A copy is compared with what it was made from, and opened, before anybody may see it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from replica_platform.core.files import fsync_file
from replica_platform.replica.copy import blocks
from replica_platform.replica.errors import CandidateDamaged
from replica_platform.replica.store.candidate import Step
from replica_platform.replica.store.manifest import Table
from replica_platform.replica.store.probe_process import Probe

# Reading every row takes some 2 s a gigabyte: of a file of this size as long as opening it.
READ_TO_THE_END_BYTES = 32 * 1024 * 1024


def verify_copy(
    path: Path,
    survey: blocks.Survey,
    probe: Probe,
    required: tuple[str, ...] = (),
    step: Step = lambda _: None,
) -> dict[str, Table]:
    """Compare every byte with what the master's were, and open it in a child process.

    All the while the file is on its way to the disk, which takes longest.
    """
    try:
        path.chmod(0o444)
        # A block that fails DuckDB's checksum may be a free one, torn by a crash long ago: only
        # reading everything tells.
        small = path.stat().st_size <= READ_TO_THE_END_BYTES
        scan = [*required, "*"] if survey.unsound or small else list(required)
        with ThreadPoolExecutor(3, "verify") as pool:
            step("fsync")
            synced = pool.submit(fsync_file, path)
            copied = pool.submit(blocks.digests, path)
            probed = pool.submit(probe.look, path, scan)
            synced.result()
            step("verify")
            if copied.result() != survey.digests:
                raise CandidateDamaged(
                    f"The copy at {path} differs from the master it was made from; it was thrown "
                    "away and readers keep their generation. Publish again; if this stays, check "
                    "the disk."
                )
            return probed.result()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
