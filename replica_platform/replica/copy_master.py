"""Copying a master at rest into a candidate's file, and noticing a writer that ignores its lock."""

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from replica_platform.replica.copy import blocks, copy_file
from replica_platform.replica.copy.copy_file import FileCopy
from replica_platform.replica.copy.file_format import BLOCK_BYTES, Header
from replica_platform.replica.copy.priority import half_the_cores
from replica_platform.replica.difference import Difference, find_difference
from replica_platform.replica.errors import GenerationDamaged, MasterChanging
from replica_platform.replica.lineage import assert_continued, is_published, lineage_of
from replica_platform.replica.master import STORAGE_VERSION, Master, QuiescentMaster
from replica_platform.replica.options import PublishOptions, StepTimer
from replica_platform.replica.probe.process import Probe
from replica_platform.replica.purpose.build import build
from replica_platform.replica.purpose.definition import Purpose
from replica_platform.replica.store.disk_space import reserve
from replica_platform.replica.store.integrity import find_damage
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Lineage, Manifest, Seal
from replica_platform.replica.store.spare import find_spare

ATTEMPTS = 3


@dataclass(frozen=True)
class MasterCopy:
    """A copy of the master that has yet to be verified.

    Attributes:
        header: The master's header.
        lineage: The master's state.
        bytes: The copy's size.
        file: How the copy was made, and the scan of its source.
        probe: The child process that will open the copy.
        difference: What of a patched copy may have differed before; None for other copies.
    """

    header: Header
    lineage: Lineage
    bytes: int
    file: FileCopy
    probe: Probe
    difference: Difference | None = None

    @property
    def written(self) -> list[int] | None:
        """The blocks that were written; None if blocks that were not may be wrong too."""
        return self.file.scan.changed if self.difference and not self.difference.reason else None

    @property
    def read_at(self) -> datetime | None:
        """When all bytes had last been read; None if verifying the copy reads them."""
        return self.difference.read_at if self.difference and self.written is not None else None


class MasterCopier:
    """One publication's copy of the master, in a `with` that ends when the copy is verified.

    Until then the child process waits for its file, and both are restricted to half of the cores.

    Args:
        layout: The store.
        current: The current generation.
        target: The file to make.
        options: How to publish.
        steps: Told each step.
    """

    def __init__(
        self,
        layout: Layout,
        current: Manifest | None,
        target: Path,
        options: PublishOptions,
        steps: StepTimer,
    ) -> None:
        self._layout = layout
        self._current = current
        self._target = target
        self._options = options
        self._steps = steps
        self._until_verified = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._until_verified.close()

    def copy(self, master: Master) -> MasterCopy | None:
        """Copy the master; return None when the current generation shows it already.

        Raises:
            GenerationDamaged: It is damaged, and the master has the state that was withheld.
            MasterChanging: It changed during every attempt.
            WrongLineage: It does not descend from the state of the current generation.
            PlatformError: The master, the disk or the purpose is wrong.
        """
        for attempt in range(ATTEMPTS):
            self._steps("quiesce")
            with master.quiesced() as source:
                lineage = lineage_of(source.header_bytes, Seal.of(source.fd))
                if self._is_current(source, lineage):
                    return None
                try:
                    return self._copy_once(source, lineage)
                except BaseException as error:
                    self._target.unlink(missing_ok=True)
                    changing = isinstance(error, MasterChanging | EOFError)
                    if not changing or attempt == ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _is_current(self, source: QuiescentMaster, lineage: Lineage) -> bool:
        """Return whether readers already have what is to be published, undamaged."""
        current = self._current
        published = is_published(self._layout, current, lineage, source.fd)
        if not self._options.new_lineage:
            assert_continued(current, lineage, source, published)
        if not published or current is None or current.recipe != self._options.recipe:
            return False
        damage = find_damage(self._layout.data(current), current)
        if damage is None:
            return True
        if current.withheld == lineage and not self._options.new_lineage:
            raise GenerationDamaged(
                f"Generation {current.generation} is damaged ({damage}), and the master still has "
                "the state that readers were rolled back from; nothing was published. Repair the "
                "generation from a block store, correct the master, or publish with new_lineage."
            )
        return False  # it is repaired by publishing it again

    def _copy_once(self, source: QuiescentMaster, lineage: Lineage) -> MasterCopy:
        purpose = self._options.purpose
        probe = self._until_verified.enter_context(Probe())
        # Readers notice a publication that leaves no core idle, whatever its priority.
        self._until_verified.enter_context(half_the_cores(probe.pid))
        difference = None
        if purpose:
            file = None
        else:
            file, difference = self._copy_changes(source, lineage)
        if file is None:
            file = self._build(purpose, source) if purpose else self._copy_whole(source)
        source.assert_unchanged()
        size = self._target.stat().st_size
        return MasterCopy(source.header, lineage, size, file, probe, difference)

    def _copy_changes(
        self, source: QuiescentMaster, lineage: Lineage
    ) -> tuple[FileCopy | None, Difference | None]:
        """Patch the spare, or share the master's blocks; return None if neither is possible."""
        self._steps("reserve")
        layout, block_bytes = self._layout, source.header.block_bytes
        spare = find_spare(layout)
        # A patch that knows what may differ reads less: of shared blocks, all are digested.
        if (spare is None or find_difference(layout, spare, source, lineage).reason) and (
            shared := copy_file.reflink(source.fd, self._target, block_bytes)
        ):
            return shared, None
        spare = reserve(layout, self._target, source.bytes, self._options.retention)
        if spare is None:
            return None, None
        self._steps("patch")
        found = find_difference(layout, spare, source, lineage)
        patched = copy_file.patch(
            source.fd,
            self._target,
            spare.block_digests,
            block_bytes,
            self._options.progress,
            found.blocks,
        )
        return patched, found

    def _copy_whole(self, source: QuiescentMaster) -> FileCopy:
        self._steps("copy")
        return copy_file.copy_whole(
            source.fd, self._target, source.header.block_bytes, self._options.progress
        )

    def _build(self, purpose: Purpose, source: QuiescentMaster) -> FileCopy:
        self._steps("build")
        build(purpose, source.path, self._target, STORAGE_VERSION)
        scan = blocks.scan_file(self._target, duckdb_block_bytes=BLOCK_BYTES)
        return FileCopy("build", scan, len(scan.digests))
