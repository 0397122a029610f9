"""What state a store is in, and the two acts that follow: verify a generation, go back to one."""

import os
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from replica_platform.core import locks
from replica_platform.replica.copy.header import HEADER_BYTES, NotDuckDB
from replica_platform.replica.errors import GenerationDamaged, NothingPublished
from replica_platform.replica.lineage import is_same, lineage_of
from replica_platform.replica.master import Master
from replica_platform.replica.serving.generation import Unusable, check
from replica_platform.replica.store import retention
from replica_platform.replica.store.candidate import Publication, point, publishing
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, NotAManifest, Seal, now
from replica_platform.replica.store.ownership import assert_same_purpose


@dataclass(frozen=True)
class Verification:
    """Whether the file is, byte for byte, what was published; `problem` says why not."""

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

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able fields."""
        return {**asdict(self), "file": str(self.file), "sentence": self.sentence}


@dataclass(frozen=True)
class Reader:
    """A process that holds a generation."""

    pid: int
    generation: int


@dataclass(frozen=True)
class ReplicaStatus:
    """Master and replica side by side; ages in seconds, sizes in bytes, None where unknown.

    in_sync: whether the replica shows the master's last checkpoint, by lineage, never by size.
    sentence: what is wrong and what to do next, or that all is well.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able fields."""
        return {**asdict(self), "master": str(self.master) if self.master else None}


def verify(store: Path | str, generation: int | None = None) -> Verification:
    """Read every byte of a generation (the current one) and compare it with its manifest.

    Errors: `NothingPublished`, when there is no such generation.
    """
    layout = Layout(store)
    manifest = _find(layout, generation)
    path = layout.data(manifest)
    started = time.monotonic()
    problem = None
    try:
        check(path, manifest, distrustful=True)
    except FileNotFoundError:
        problem = f"{path} is missing"
    except (Unusable, OSError) as error:
        problem = str(error)
    took = time.monotonic() - started
    return Verification(manifest.generation, path, manifest.bytes, problem is None, problem, took)


def rollback(store: Path | str, to: int | None = None) -> Publication:
    """Point readers at an older generation (the one before the current), after verifying it.

    The master's state that was rolled back from is not published again until it changes.
    Errors: `NothingPublished`, `WrongStore`, `GenerationDamaged`, `StoreBusy`.
    """
    started = time.monotonic()
    layout = Layout(store)
    with publishing(layout):
        current = _find(layout, None)
        if to is None:
            older = [m.generation for m in layout.kept() if m.generation < current.generation]
            if not older:
                raise NothingPublished(
                    f"Generation {current.generation} is the oldest kept in {layout.root}; there "
                    "is nothing to go back to. Repair the data in the master and publish again."
                )
            to = older[0]
        manifest = _find(layout, to)
        assert_same_purpose(layout.root, current.purpose, manifest.purpose)
        try:
            check(layout.data(manifest), manifest, distrustful=True)
        except (Unusable, OSError) as error:
            raise GenerationDamaged(
                f"Generation {to} cannot be gone back to: {error}; readers stay on generation "
                f"{current.generation}. Choose another one, or publish again."
            ) from error
        withheld = current.lineage if current.generation != manifest.generation else None
        manifest = replace(manifest, confirmed_at=now(), withheld=withheld)
        point(layout, manifest)
    return Publication.unchanged(layout.data(manifest), manifest, time.monotonic() - started)


def status(store: Path | str, master: Path | str | None = None) -> ReplicaStatus:
    """Look at a store, and at the master it is published from; nothing is changed or locked."""
    layout = Layout(store)
    problem: str | None = None
    try:
        current = layout.current()
    except (NotAManifest, OSError) as error:
        current, problem = None, f"The pointer {layout.pointer} cannot be read ({error})"
    there = current is not None and layout.data(current).exists()
    size = layout.data(current).stat().st_size if current and there else None
    path = Path(master).absolute() if master else None
    in_sync, master_problem = _compare(path, layout, current)
    if current is None:
        problem = problem or f"Nothing is published in {layout.root}"
    elif not there:
        problem = (
            f"The file of generation {current.generation} is missing from {layout.generations}"
        )
    elif damage := _damage(layout, current):
        problem = f"Generation {current.generation} is damaged: {damage}"
    moment = now()
    data_age_s = _age(moment, current.data_as_of) if current else None
    publication_age_s = _age(moment, current.confirmed_at) if current else None
    if problem:
        problem = f"{problem}; publish again."
    else:
        problem = master_problem or _stale(current, data_age_s, publication_age_s)
    return ReplicaStatus(
        ok=problem is None,
        sentence=problem or _well(current, in_sync),
        master=path,
        master_there=path.exists() if path else None,
        master_bytes=path.stat().st_size if path and path.exists() else None,
        replica_there=there,
        replica_bytes=size,
        generation=current.generation if current else None,
        in_sync=in_sync,
        data_age_s=data_age_s,
        publication_age_s=publication_age_s,
        readers=[
            Reader(pid, kept.generation)
            for kept in layout.kept()
            for pid in retention.readers(layout, kept)
        ],
        kept=[kept.generation for kept in layout.kept()],
    )


def _damage(layout: Layout, current: Manifest) -> str | None:
    """What is wrong with the file; its bytes are read only where its seal is broken."""
    try:
        check(layout.data(current), current)
    except (Unusable, OSError) as error:
        return str(error)
    return None


def _compare(
    master: Path | None, layout: Layout, current: Manifest | None
) -> tuple[bool | None, str | None]:
    """Whether the replica shows the master's last checkpoint, and what is wrong with the master."""
    if master is None:
        return None, None
    if not master.exists():
        return None, f"There is no master at {master}; run the batch that fills it."
    if any(holder.exclusive or holder.pid == os.getpid() for holder in locks.holders(master)):
        # A batch is at work, or this process reads it: to look would drop DuckDB's lock.
        return None, None
    if current is None:
        return False, None
    try:
        same = _is_shown(master, layout, current)
    except NotDuckDB as error:
        return None, f"The master {master} is damaged: {error}; restore it from a backup."
    if same is None:
        return False, None  # rolled back on purpose
    if same and not Master(master).sidecars:
        return True, None
    return False, f"The master has data that generation {current.generation} lacks; publish it."


def _is_shown(master: Path, layout: Layout, current: Manifest) -> bool | None:
    """Whether the current generation shows the master; None when that is withheld from readers."""
    with master.open("rb", buffering=0) as file:
        found = lineage_of(file.read(HEADER_BYTES), Seal.of(file.fileno()))
        if is_same(layout, current.lineage, found, file.fileno()):
            return True
        withheld = current.withheld
        if withheld and is_same(layout, withheld, found, file.fileno()):
            return None
    return False


def _age(moment: datetime, since: datetime | None) -> float | None:
    # A clock that jumped back would make an age negative; it is at least not old.
    return None if since is None else max(0.0, (moment - since).total_seconds())


def _stale(
    current: Manifest | None, data_age_s: float | None, publication_age_s: float | None
) -> str | None:
    """Both ages count: of the data, and of the last word of a publisher, which may hang."""
    limit_s = current.max_age_s if current else None
    for what, age_s, then in (
        ("The data", data_age_s, "run the batch, and publish"),
        ("The last publication", publication_age_s, "see whether the publisher still runs"),
    ):
        if limit_s is not None and age_s is not None and age_s > limit_s:
            return f"{what} is {age_s:,.0f} s old and may be {limit_s:,.0f} s at most; {then}."
    return None


def _well(current: Manifest | None, in_sync: bool | None) -> str:
    generation = current.generation if current else None
    if current and current.withheld:
        return f"All is well: readers were rolled back to generation {generation}."
    if in_sync:
        return f"All is well: generation {generation} shows the master's last checkpoint."
    return f"All is well: readers have generation {generation}."


def _find(layout: Layout, generation: int | None) -> Manifest:
    current = layout.latest()
    for manifest in ([current] if current else []) + layout.kept():
        if generation in (None, manifest.generation):
            return manifest
    what = "Nothing is" if generation is None else f"Generation {generation} is not"
    raise NothingPublished(f"{what} published in {layout.root}; publish into it first.")
