"""A generation that is built and verified, and that no reader can see yet.

Between `prepare` and `release` it can be audited, in this process or another. `release` moves the
pointer, last of all. How its file is built is not here: see `publish` and `remote.assemble`.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb

from replica_platform.core.files import fsync_dir, write_atomically
from replica_platform.core.reports import DoneReport, format_bytes
from replica_platform.replica.copy.file_format import attach_sql, logs_beside, use_sql
from replica_platform.replica.errors import CandidateDamaged, CandidateGone, translate_errors
from replica_platform.replica.store.integrity import find_damage
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, NotAManifest, Seal, generation_in, now
from replica_platform.replica.store.pointer import point_to, store_lock
from replica_platform.replica.store.retention import Retention, retire

# Told the name of each step before it begins.
Step = Callable[[str], None]
SAVED_FIELDS = (
    *("how", "blocks_written", "steps", "keep", "min_age_s", "built_on"),
    *("blocks_read", "compared_all"),
)


@dataclass(frozen=True)
class Publication(DoneReport):
    """What was published.

    Attributes:
        generation: The current generation.
        file: Its file.
        bytes: The file's size.
        digest: The file's digest.
        how: reflink, patch, copy, build, pull or unchanged.
        blocks_written: How many blocks of 256 KiB were written.
        seconds: How long it took.
        steps: How long each step took, in seconds, by name.
        manifest: The generation's manifest.
        blocks_read: How many blocks of the master were read.
        compared_all: Why a patch compared every block; empty if it did not, or was none.
    """

    generation: int
    file: Path
    bytes: int
    digest: str
    how: str
    blocks_written: int
    seconds: float
    steps: dict[str, float]
    manifest: Manifest = field(repr=False)
    blocks_read: int = 0
    compared_all: str = ""

    @classmethod
    def unchanged(cls, file: Path, manifest: Manifest, seconds: float = 0.0) -> "Publication":
        """Return the report of a publication that only pointed readers at `manifest`."""
        return cls(
            generation=manifest.generation,
            file=file,
            bytes=manifest.bytes,
            digest=manifest.digest,
            how="unchanged",
            blocks_written=0,
            seconds=seconds,
            steps={},
            manifest=manifest,
        )

    @property
    def broken_views(self) -> dict[str, str]:
        """Why each view that cannot be opened fails, by name."""
        return self.manifest.broken_views

    @property
    def warning(self) -> str:
        """Which views cannot be opened and what to do next; empty when there are none."""
        if not self.broken_views:
            return ""
        name, reason = next(iter(self.broken_views.items()))
        others = len(self.broken_views) - 1
        return (
            f"Readers cannot open the view {name} ({reason})"
            f"{f', nor {others} others' if others else ''}; correct it in the master, and publish "
            "again."
        )

    @property
    def sentence(self) -> str:
        """Which generation readers have now, what it cost, and which views do not open."""
        if self.how == "unchanged":
            result = f"Generation {self.generation} is current; nothing had to be copied."
        else:
            result = (
                f"Generation {self.generation} is current: {format_bytes(self.bytes)} by "
                f"{self.how}, {self.blocks_written:,} blocks written, in {self.seconds:.2f} s."
            )
        if self.compared_all:
            result += f" Every block was compared, because {self.compared_all}."
        return f"{result} {self.warning}".strip()


@dataclass(frozen=True)
class Candidate:
    """A verified generation that waits for `release` or `discard`.

    Of an unchanged master it is the current generation: releasing it only stamps its freshness.

    Attributes:
        store: The store's folder.
        manifest: The candidate's manifest.
        how: reflink, patch, copy, build, pull or unchanged.
        blocks_written: How many blocks of 256 KiB were written.
        steps: How long each step took, in seconds, by name.
        keep: How many generations stay after the release.
        min_age_s: How long, in seconds, each stays at least.
        built_on: The generation that was current when it was built.
        blocks_read: How many blocks of the master were read.
        compared_all: Why a patch compared every block; empty if it did not, or was none.
    """

    store: Path
    manifest: Manifest = field(repr=False)
    how: str
    blocks_written: int
    steps: dict[str, float]
    keep: int
    min_age_s: float
    built_on: int | None
    blocks_read: int = 0
    compared_all: str = ""

    @property
    def generation(self) -> int:
        """Its number."""
        return self.manifest.generation

    @property
    def unchanged(self) -> bool:
        """Whether it is the current generation."""
        return self.how == "unchanged"

    @property
    def path(self) -> Path:
        """Its file."""
        layout = Layout(self.store)
        folder = layout.generations if self.unchanged else layout.candidates
        return folder / self.manifest.file

    @contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a read-only connection to the candidate, to audit it.

        Raises:
            CandidateGone: It was released, discarded or replaced.
        """
        self._assert_there()
        connection = duckdb.connect()
        try:
            connection.execute(attach_sql(self.path, self.manifest.catalog))
            connection.execute(use_sql(self.manifest.catalog))
            yield connection
        finally:
            connection.close()

    def release(self, step: Step | None = None) -> Publication:
        """Make it the current generation.

        Args:
            step: Told the name of each step before it begins.

        Returns:
            What was published.

        Raises:
            CandidateGone: It was released, discarded or overtaken.
            CandidateDamaged: Its file changed after it was verified.
            StoreBusy: Another process is changing the store.
        """
        step = step or (lambda _: None)
        layout = Layout(self.store)
        started = time.monotonic()
        with store_lock(layout):
            self._assert_there()
            self._assert_not_overtaken(layout)
            manifest = self.manifest if self.unchanged else self._install(layout, step)
            step("pointer")
            point_to(layout, manifest)
            step("forget")
            self._delete()
            step("retire")
            retire(layout, Retention(self.keep, self.min_age_s), now())
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
            blocks_read=self.blocks_read,
            compared_all=self.compared_all,
        )

    def discard(self) -> None:
        """Delete it; readers never saw it.

        Raises:
            StoreBusy: Another process is changing the store.
        """
        with store_lock(Layout(self.store)):
            self._delete()

    def save(self) -> None:
        """Write its description, so that another process finds it by `load`."""
        fields = {name: getattr(self, name) for name in SAVED_FIELDS}
        fields["manifest"] = self.manifest.to_json().decode()
        write_atomically(self._description, json.dumps(fields).encode())

    @classmethod
    def load(cls, store: Path | str, path: Path | str | None = None) -> "Candidate":
        """Return the candidate that waits in a store.

        Args:
            store: The store's folder.
            path: The candidate's file; by default the newest one.

        Raises:
            CandidateGone: No candidate waits there.
        """
        layout = Layout(store)
        pattern = f"{Path(path).stem}.candidate" if path else "*.candidate"
        found = layout.candidates.glob(pattern)
        for description in sorted(
            found, key=lambda one: generation_in(one.name) or 0, reverse=True
        ):
            try:
                fields = json.loads(description.read_bytes())
                manifest = Manifest.from_json(fields.pop("manifest"))
                return cls(store=layout.root, manifest=manifest, **fields)
            except (NotAManifest, OSError, ValueError, KeyError, TypeError):
                continue
        raise CandidateGone(
            f"No candidate waits in {layout.root}: it was released, discarded or never built; "
            "publish again to build one."
        )

    @property
    def _description(self) -> Path:
        return (Layout(self.store).candidates / self.manifest.file).with_suffix(".candidate")

    def _assert_there(self) -> None:
        if not self._description.exists() or not self.path.exists():
            raise CandidateGone(
                f"The candidate {self.path} is gone: it was released, discarded or replaced by a "
                "newer one; publish again."
            )

    def _assert_not_overtaken(self, layout: Layout) -> None:
        current = layout.latest()
        if (current.generation if current else None) != self.built_on:
            self._delete()
            raise CandidateGone(
                f"Generation {self.generation} was overtaken: it was built when generation "
                f"{self.built_on} was current, and now it is "
                f"{current.generation if current else 'none'}; publish again."
            )

    def _install(self, layout: Layout, step: Step) -> Manifest:
        """Move it among the generations and seal it; the pointer does not name it yet."""
        if find_damage(self.path, self.manifest):
            self._delete()
            raise CandidateDamaged(
                f"The candidate {self.path} was changed after it had been verified; it was deleted "
                "and readers keep their generation. Publish again."
            )
        target = layout.data(self.manifest)
        for log in logs_beside(target):
            log.unlink()
        step("lease")
        layout.lease(self.manifest).touch(mode=0o644)
        step("rename")
        with translate_errors(layout.root):
            self.path.replace(target)
            fsync_dir(layout.generations)
            layout.damage_mark(self.manifest).unlink(missing_ok=True)
            # The rename changes the inode's time, so the seal is taken after it.
            manifest = replace(self.manifest, seal=Seal.of(target))
            if self.how != "pull":  # a pulled one was published and confirmed elsewhere
                moment = now()
                manifest = replace(manifest, published_at=moment, confirmed_at=moment)
            step("manifest")
            write_atomically(layout.manifest_path(manifest), manifest.to_json())
        return manifest

    def _delete(self) -> None:
        self._description.unlink(missing_ok=True)
        (Layout(self.store).candidates / self.manifest.file).unlink(missing_ok=True)
