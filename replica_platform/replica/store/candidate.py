"""A generation that is built, closed and verified, and that no reader can see yet.

Between `prepare` and `release` anybody may audit it, in this process or another; released, the
pointer moves, last of all. How its bytes come about is in `publish`.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb

from replica_platform.core import locks
from replica_platform.core.files import fsync_dir, write_atomically
from replica_platform.replica.copy import blocks
from replica_platform.replica.errors import (
    CandidateDamaged,
    CandidateGone,
    NothingPublished,
    StoreBusy,
    explaining,
)
from replica_platform.replica.store import retention
from replica_platform.replica.store.layout import Layout, sealed
from replica_platform.replica.store.manifest import Manifest, NotAManifest, Seal, now

STORE_PATIENCE_S = 30.0

Step = Callable[[str], None]


@dataclass(frozen=True)
class Publication:
    """What was published: `how` is reflink, patch, copy, build, pull or unchanged."""

    generation: int
    file: Path
    bytes: int
    digest: str
    how: str
    blocks_written: int
    seconds: float
    steps: dict[str, float]
    manifest: Manifest = field(repr=False)

    @classmethod
    def unchanged(cls, file: Path, manifest: Manifest, seconds: float = 0.0) -> "Publication":
        """What to say where nothing was written: readers were only pointed at `manifest`."""
        return cls(
            manifest.generation,
            file,
            manifest.bytes,
            manifest.digest,
            "unchanged",
            0,
            seconds,
            {},
            manifest,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able fields."""
        fields = asdict(self)
        return {**fields, "file": str(self.file), "manifest": self.manifest.as_dict()}


@dataclass(frozen=True)
class Candidate:
    """A verified file at `path` that waits for `release` or `discard`.

    Unchanged, it is the current generation itself: released, only its freshness is stamped.
    """

    store: Path
    manifest: Manifest = field(repr=False)
    how: str
    blocks_written: int
    steps: dict[str, float]
    keep: int
    min_age_s: float
    built_on: int | None

    @property
    def generation(self) -> int:
        return self.manifest.generation

    @property
    def unchanged(self) -> bool:
        return self.how == "unchanged"

    @property
    def path(self) -> Path:
        layout = Layout(self.store)
        folder = layout.generations if self.unchanged else layout.candidates
        return folder / self.manifest.file

    @contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection on the candidate, to audit it."""
        self._assert_there()
        connection = duckdb.connect(str(self.path), read_only=True)
        try:
            yield connection
        finally:
            connection.close()

    def release(self, step: Step | None = None) -> Publication:
        """Make it the current generation. Errors: `CandidateGone`, `CandidateDamaged`, `StoreBusy`.

        `step` is told the name of each step before it happens.
        """
        step = step or (lambda _: None)
        layout = Layout(self.store)
        started = time.monotonic()
        with publishing(layout):
            self._assert_there()
            current = layout.latest()
            if (current.generation if current else None) != self.built_on:
                self._forget()
                raise CandidateGone(
                    f"Generation {self.generation} was overtaken: generation "
                    f"{current.generation if current else 'none'} is current and it was built upon "
                    f"{self.built_on}; publish again."
                )
            manifest = self.manifest if self.unchanged else self._settle(layout, step)
            step("pointer")
            point(layout, manifest)
            step("forget")
            self._forget()
            step("retire")
            retention.retire(layout, keep=self.keep, min_age_s=self.min_age_s, now=now())
        took = time.monotonic() - started
        return Publication(
            generation=manifest.generation,
            file=layout.data(manifest),
            bytes=manifest.bytes,
            digest=manifest.digest,
            how=self.how,
            blocks_written=self.blocks_written,
            seconds=sum(self.steps.values()) + took,
            steps={**self.steps, "release": took},
            manifest=manifest,
        )

    def discard(self) -> None:
        """Throw it away; readers never knew of it."""
        with publishing(Layout(self.store)):
            self._forget()

    def save(self) -> None:
        """Write it down, so that another process finds it by `load`."""
        fields = {name: getattr(self, name) for name in ("how", "blocks_written", "steps")}
        fields |= {"keep": self.keep, "min_age_s": self.min_age_s, "built_on": self.built_on}
        layout = Layout(self.store)
        write_atomically(self._description(layout), json.dumps(fields).encode())
        write_atomically(self._described(layout), self.manifest.to_json())

    @classmethod
    def load(cls, store: Path | str, path: Path | str | None = None) -> "Candidate":
        """The candidate that waits in `store` (the one with that path, if given).

        Errors: `CandidateGone`.
        """
        layout = Layout(store)
        pattern = f"{Path(path).stem}.json" if path else "*.json"
        for described in sorted(layout.candidates.glob(pattern), reverse=True):
            try:
                manifest = Manifest.from_json(described.read_bytes())
                fields = json.loads(described.with_suffix(".candidate").read_bytes())
            except (NotAManifest, OSError, ValueError):
                continue
            return cls(store=layout.root, manifest=manifest, **fields)
        raise CandidateGone(
            f"No candidate waits in {layout.root}: it was released, discarded or never built; "
            "publish again to build one."
        )

    def _described(self, layout: Layout) -> Path:
        return (layout.candidates / self.manifest.file).with_suffix(".json")

    def _description(self, layout: Layout) -> Path:
        return self._described(layout).with_suffix(".candidate")

    def _assert_there(self) -> None:
        if not self._described(Layout(self.store)).exists() or not self.path.exists():
            raise CandidateGone(
                f"The candidate {self.path} is no longer there: it was released, discarded or "
                "replaced by a newer one; publish again."
            )

    def _settle(self, layout: Layout, step: Step) -> Manifest:
        """Rename it among the generations and seal it; still nobody is pointed at it."""
        if not sealed(self.path, self.manifest) and not _is_intact(self.path, self.manifest):
            self._forget()
            raise CandidateDamaged(
                f"The candidate {self.path} was changed after it had been verified; it was thrown "
                "away and readers keep their generation. Publish again."
            )
        target = layout.data(self.manifest)
        for suffix in (".wal", ".wal.checkpoint", ".wal.recovery"):
            target.with_name(target.name + suffix).unlink(missing_ok=True)
        step("lease")
        layout.lease(self.manifest).touch(mode=0o644)
        step("rename")
        with explaining(layout.root):
            self.path.replace(target)
            fsync_dir(layout.generations)
            # The rename itself changes the inode's time, so the seal is taken after it.
            manifest = replace(self.manifest, seal=Seal.of(target))
            if self.how != "pull":  # that was published elsewhere, and confirmed there
                moment = now()
                manifest = replace(manifest, published_at=moment, confirmed_at=moment)
            step("manifest")
            write_atomically(layout.manifest_path(manifest), manifest.to_json())
        return manifest

    def _forget(self) -> None:
        layout = Layout(self.store)
        self._described(layout).unlink(missing_ok=True)
        self._description(layout).unlink(missing_ok=True)
        (layout.candidates / self.manifest.file).unlink(missing_ok=True)


def point(layout: Layout, manifest: Manifest) -> None:
    """Move the pointer, then the link for other clients; readers see the old or the new one."""
    with explaining(layout.root):
        write_atomically(layout.pointer, manifest.to_json())
        target = os.path.relpath(layout.data(manifest), layout.root)
        if not layout.link.is_symlink() or str(layout.link.readlink()) != target:
            making = layout.root / f".tmp-{layout.link.name}-{os.getpid()}"
            making.unlink(missing_ok=True)
            making.symlink_to(target)
            making.replace(layout.link)
            fsync_dir(layout.root)


@contextmanager
def publishing(layout: Layout) -> Iterator[None]:
    """Hold the store's lock: one publisher at a time. Errors: `StoreBusy`, `StoreDenied`."""
    if not layout.root.is_dir():
        raise NothingPublished(f"There is no store at {layout.root}; publish into it first.")
    with explaining(layout.root):
        try:
            with locks.file_lock(layout.lock, wait_s=STORE_PATIENCE_S):
                yield
        except locks.LockHeld:
            raise StoreBusy(
                f"{locks.describe(locks.holders(layout.lock))} publishes into {layout.root}; "
                "wait for it to finish, or stop it, and publish again."
            ) from None


def _is_intact(path: Path, manifest: Manifest) -> bool:
    return (
        path.stat().st_size == manifest.bytes
        and blocks.root(blocks.digests(path)) == manifest.digest
    )


def building_path(layout: Layout) -> Path:
    """Where the next candidate is built: a new name, for a killed builder's child may live on."""
    return layout.candidates / f".tmp-building-{secrets.token_hex(4)}.duckdb"


def clear_orphans(layout: Layout) -> None:
    """Remove what a killed publisher left: temporary files, candidates, half-released files."""
    for folder in (layout.root, layout.generations, layout.spares):
        for path in folder.glob(".tmp-*"):
            path.unlink()
    shutil.rmtree(layout.candidates, ignore_errors=True)
    layout.candidates.mkdir(exist_ok=True)
    current = layout.latest()
    for path in layout.generations.glob("*.duckdb"):
        pointed_at = current is not None and path.name == current.file
        if not path.with_suffix(".json").exists() and not pointed_at:
            path.unlink()
            path.with_suffix(".lease").unlink(missing_ok=True)
    for path in layout.generations.glob("*.lease"):
        if not path.with_suffix(".duckdb").exists():
            path.unlink()
    fsync_dir(layout.generations)
