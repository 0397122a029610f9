"""The state of a store: `status` without reading its bytes, and `verify` with every byte."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from replica_platform.core import locks
from replica_platform.core.reports import ReportFields
from replica_platform.replica.copy.file_format import HEADER_BYTES, Encrypted, NotDuckDB
from replica_platform.replica.lineage import is_known_content, lineage_of
from replica_platform.replica.master import Master, encrypted
from replica_platform.replica.store.integrity import find_damage, find_traces
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, NotAManifest, Seal, age_s
from replica_platform.replica.store.retention import reader_pids


@dataclass(frozen=True)
class GenerationVerification(ReportFields):
    """Whether a generation's file is, byte for byte, what was published.

    Attributes:
        generation: The generation.
        file: Its file.
        bytes: The file's size, by the manifest.
        ok: Whether every byte is right.
        problem: What is wrong; None when nothing is.
        seconds: How long it took.
    """

    generation: int
    file: Path
    bytes: int
    ok: bool
    problem: str | None
    seconds: float

    @property
    def sentence(self) -> str:
        """What is wrong and what to do next, or that all is well."""
        if self.ok:
            return f"Generation {self.generation} is, byte for byte, what was published."
        return (
            f"Generation {self.generation} is damaged: {self.problem}. Publish again, "
            "or roll back to an earlier generation."
        )


@dataclass(frozen=True)
class Reader:
    """A process that holds a generation.

    Attributes:
        pid: The process.
        generation: The generation.
    """

    pid: int
    generation: int


@dataclass(frozen=True)
class ReplicaStatus(ReportFields):
    """Master and replica side by side; None where unknown.

    Attributes:
        ok: Whether all is well.
        sentence: What is wrong and what to do next, or that all is well.
        master: The master's path.
        master_there: Whether the master exists.
        master_bytes: The master's size.
        replica_there: Whether the current generation's file exists.
        replica_bytes: The file's size.
        generation: The current generation.
        in_sync: Whether it has the master's last checkpoint, by lineage, not by size.
        data_age_s: The age of the data in seconds.
        publication_age_s: Seconds since a publisher last found it to be current.
        readers: The processes that hold a generation.
        kept: The generations that are kept, newest first.
    """

    ok: bool
    sentence: str
    master: Path | None
    master_there: bool | None
    master_bytes: int | None
    replica_there: bool
    replica_bytes: int | None
    generation: int | None
    in_sync: bool | None
    data_age_s: float | None
    publication_age_s: float | None
    readers: list[Reader]
    kept: list[int]


def verify(store: Path | str, generation: int | None = None) -> GenerationVerification:
    """Read every byte of a generation and compare it with its manifest.

    Args:
        store: The store's folder.
        generation: Its number; by default the current one.

    Returns:
        Whether it is what was published.

    Raises:
        NothingPublished: The store does not have that generation.
    """
    layout = Layout(store)
    manifest = layout.find(generation)
    path = layout.data(manifest)
    started = time.monotonic()
    problem = find_damage(path, manifest, read_all=True)
    took = time.monotonic() - started
    return GenerationVerification(
        manifest.generation, path, manifest.bytes, problem is None, problem, took
    )


def status(store: Path | str, master: Path | str | None = None) -> ReplicaStatus:
    """Inspect a store, and the master it is published from; lock nothing and read no bytes.

    Of a file that was touched since it was published, it says so: a publication compares its bytes.

    Args:
        store: The store's folder.
        master: The master's path; without it only the store is inspected.

    Returns:
        The state of both.
    """
    layout = Layout(store)
    path = Path(master).absolute() if master else None
    current, unreadable = _read_pointer(layout)
    file = layout.data(current) if current else None
    file_exists = file is not None and file.exists()
    in_sync, master_problem = _inspect_master(path, layout, current)
    problem = (
        _problem_of_replica(layout, current, unreadable)
        or master_problem
        or (_staleness(current) if current else None)
    )
    kept = layout.kept()
    return ReplicaStatus(
        ok=problem is None,
        sentence=problem or _all_is_well(current, in_sync),
        master=path,
        master_there=path.exists() if path else None,
        master_bytes=path.stat().st_size if path and path.exists() else None,
        replica_there=file_exists,
        replica_bytes=file.stat().st_size if file and file_exists else None,
        generation=current.generation if current else None,
        in_sync=in_sync,
        data_age_s=age_s(current.data_as_of) if current else None,
        publication_age_s=age_s(current.confirmed_at) if current else None,
        readers=[
            Reader(pid, manifest.generation)
            for manifest in kept
            for pid in reader_pids(layout, manifest)
        ],
        kept=[manifest.generation for manifest in kept],
    )


def _read_pointer(layout: Layout) -> tuple[Manifest | None, str | None]:
    """Return the current generation, and what is wrong with the pointer."""
    try:
        return layout.current(), None
    except (NotAManifest, OSError) as error:
        return None, f"The pointer {layout.pointer} cannot be read ({error})"


def _problem_of_replica(
    layout: Layout, current: Manifest | None, unreadable: str | None
) -> str | None:
    """Return what is wrong with the pointer or the file."""
    if current is None:
        problem = unreadable or f"Nothing is published in {layout.root}"
    elif not layout.data(current).exists():
        problem = (
            f"The file of generation {current.generation} is missing from {layout.generations}"
        )
    elif damage := find_traces(layout.data(current), current):
        problem = f"Generation {current.generation} {damage}"
    else:
        return None
    return f"{problem}; publish again."


def _inspect_master(
    master: Path | None, layout: Layout, current: Manifest | None
) -> tuple[bool | None, str | None]:
    """Return whether the replica has the master's last checkpoint, and the master's problem."""
    if master is None:
        return None, None
    if not master.exists():
        return None, f"There is no master at {master}; run the batch that fills it."
    if any(holder.exclusive or holder.pid == os.getpid() for holder in locks.holders(master)):
        # A batch is running, or this process has the master open: reading the file here would
        # drop DuckDB's lock on it.
        return None, None
    if current is None:
        return False, None
    try:
        return _compare(master, layout, current)
    except Encrypted:
        return None, str(encrypted(master))
    except NotDuckDB as error:
        return None, f"The master {master} is damaged: {error}; restore it from a backup."


def _compare(master: Path, layout: Layout, current: Manifest) -> tuple[bool | None, str | None]:
    """Compare the master's state with that of the current generation."""
    with master.open("rb", buffering=0) as file:
        found = lineage_of(file.read(HEADER_BYTES), Seal.of(file.fileno()))
    published = is_known_content(layout, current.lineage, found)
    withheld = current.withheld is not None and is_known_content(layout, current.withheld, found)
    if published and not Master(master).sidecars:
        return True, None
    if withheld:
        return False, None  # readers were rolled back from it on purpose
    if published is None or withheld is None:
        return None, (
            f"The master was touched since generation {current.generation} was published, and may "
            "have other bytes; publish it, which compares them."
        )
    return False, f"The master has data that generation {current.generation} lacks; publish it."


def _staleness(current: Manifest) -> str | None:
    """Return which of the two ages is too high: of the data, or of the last publication."""
    limit_s = current.max_age_s
    for what, since, advice in (
        ("The data", current.data_as_of, "run the batch, and publish"),
        ("The last publication", current.confirmed_at, "see whether the publisher still runs"),
    ):
        seconds = age_s(since)
        if limit_s is not None and seconds is not None and seconds > limit_s:
            return f"{what} is {seconds:,.0f} s old and may be {limit_s:,.0f} s at most; {advice}."
    return None


def _all_is_well(current: Manifest | None, in_sync: bool | None) -> str:
    generation = current.generation if current else None
    if current and current.withheld:
        return f"All is well: readers were rolled back to generation {generation}."
    if in_sync:
        return f"All is well: generation {generation} shows the master's last checkpoint."
    return f"All is well: readers have generation {generation}."
