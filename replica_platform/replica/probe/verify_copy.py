"""Comparing a copy with its source, and opening it, before it becomes a candidate."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from replica_platform.core.files import fsync_file
from replica_platform.replica.copy import blocks
from replica_platform.replica.errors import CandidateDamaged, MasterDamaged
from replica_platform.replica.probe import program
from replica_platform.replica.probe.process import Content, Probe, ProbeFailed
from replica_platform.replica.store.candidate import Step


def verify_copy(
    path: Path,
    scan: blocks.Scan,
    probe: Probe,
    catalog: str,
    required: tuple[str, ...] = (),
    step: Step = lambda _: None,
    written: Collection[int] | None = None,
) -> Content:
    """Compare the bytes with the scan of the source, and read the tables in a child process.

    Runs during the fsync, which takes longest. The copy is deleted when it fails.

    Args:
        path: The copy.
        scan: The scan of its source.
        probe: The child process.
        catalog: The name of the catalog that its views may contain.
        required: Tables that must exist and are read to the end; `*` for all.
        step: Told the name of each step before it begins.
        written: Compare only these blocks: the others are those of a sealed file. By default all.

    Returns:
        Its tables, and the views that cannot be opened.

    Raises:
        CandidateDamaged: The copy differs from its source.
        MasterDamaged: The copy equals its source, and cannot be read.
    """
    try:
        path.chmod(0o444)
        # A block that fails DuckDB's checksum may be a free one, torn by an old crash: only
        # reading every table tells.
        small = path.stat().st_size <= program.READ_TO_THE_END_BYTES
        tables = [*required, "*"] if scan.unsound or small else list(required)
        with ThreadPoolExecutor(3, "verify") as pool:
            step("fsync")
            synced = pool.submit(fsync_file, path)
            digested = pool.submit(blocks.scan_file, path, known=scan.digests, only=written)
            probed = pool.submit(probe.read_tables, path, catalog, tables)
            synced.result()
            step("verify")
            _assert_equal(path, digested.result(), scan)
            try:
                return probed.result()
            except ProbeFailed as error:
                if written is not None:  # a block that was not compared may be the cause
                    _assert_equal(path, blocks.scan_file(path), scan)
                raise MasterDamaged(
                    f"The master cannot be read to the end ({error}); nothing was published and "
                    "readers keep their generation. Repair or restore the master, and publish "
                    "again."
                ) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _assert_equal(path: Path, found: blocks.Scan, source: blocks.Scan) -> None:
    if found.digests != source.digests:
        raise CandidateDamaged(
            f"The copy at {path} differs from the master it was made from; it was deleted and "
            "readers keep their generation. Publish again; if the problem remains, check the disk."
        )
