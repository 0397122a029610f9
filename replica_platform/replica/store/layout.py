"""The names of the store's files, and reading them; standard library only.

    generations/stock_data.000012-3fa9c1d2.duckdb
                                         immutable, read-only; .json beside it is its manifest,
                                         .lease is locked by its readers
    candidates/                          built and verified, not yet visible
    spare/                               a retired generation that the next one is patched from
                                         .withheld marks one that readers were rolled back from,
                                         .damaged one in which a scrub found damage
    current.json                         the manifest of the current generation, replaced last
    scrub.json                           how far a scrub has read
    master.json                          the seal of the master when it was last verified
    current.copy.json                    its copy, written first, for when the pointer is damaged
    stock_data_replica.db                a link to the current generation, which may have another
                                         name, and one with the name of the master's file

Moving files is not here: see `pointer`, `retention` and `candidate`.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from replica_platform.replica.errors import NothingPublished
from replica_platform.replica.store.manifest import (
    Manifest,
    NotAManifest,
    damage_mark,
    generation_in,
    read_manifest,
)
from replica_platform.replica.store.moment import At, at_in_words, kept_in_words, parse_at

LINK = "stock_data_replica.db"


class Layout:
    """The store at `root`."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        self.generations = self.root / "generations"
        self.candidates = self.root / "candidates"
        self.spares = self.root / "spare"
        self.pointer = self.root / "current.json"
        self.pointer_copy = self.root / "current.copy.json"
        self.master_state = self.root / "master.json"
        self.scrub_state = self.root / "scrub.json"
        self.lock = self.root / ".publish.lock"

    def data(self, manifest: Manifest) -> Path:
        """Return the path of a generation's file."""
        return self.generations / manifest.file

    def manifest_path(self, manifest: Manifest) -> Path:
        """Return the path of a generation's manifest."""
        return self.data(manifest).with_suffix(".json")

    def lease(self, manifest: Manifest) -> Path:
        """Return the path of the file on which a generation's readers hold a shared lock."""
        return self.data(manifest).with_suffix(".lease")

    def links(self, manifest: Manifest) -> list[Path]:
        """Return the links that lead to a generation while it is current.

        A file that already has the master's name, such as the master itself, is not replaced.
        """
        link = manifest.link or LINK
        names = {link, manifest.master or link}
        paths = [self.root / name for name in sorted(names)]
        return [path for path in paths if path.is_symlink() or not path.exists()]

    def withheld_mark(self, manifest: Manifest) -> Path:
        """Return the path of the mark of a generation that readers were rolled back from."""
        return self.data(manifest).with_suffix(".withheld")

    def damage_mark(self, manifest: Manifest) -> Path:
        """Return the path of the mark of a generation in which a scrub found damage."""
        return damage_mark(self.data(manifest))

    def is_marked_damaged(self, manifest: Manifest) -> bool:
        """Return whether a scrub found damage in a generation."""
        return self.damage_mark(manifest).exists()

    def current(self) -> Manifest | None:
        """Return the current generation; None before the first.

        Raises:
            NotAManifest: The pointer is damaged.
            OSError: The pointer may not be read.
        """
        try:
            return read_manifest(self.pointer)
        except FileNotFoundError:
            return None

    def latest(self) -> Manifest | None:
        """Return the current generation, also if the pointer is damaged or lost.

        Without the pointer and its copy, it is the newest that readers were not rolled back from.
        """
        try:
            current = self.current()
        except NotAManifest:
            current = None
        return current or self.copied_pointer() or self._newest()

    def copied_pointer(self) -> Manifest | None:
        """Return the copy of the pointer; None if it is damaged or lost."""
        try:
            return read_manifest(self.pointer_copy)
        except (NotAManifest, OSError):
            return None

    def _newest(self) -> Manifest | None:
        kept = self.kept()
        for at, manifest in enumerate(kept):
            if not self.withheld_mark(manifest).exists():
                return replace(manifest, withheld=kept[at - 1].lineage) if at else manifest
        return None

    def kept(self) -> list[Manifest]:
        """Return every generation with a sound manifest, newest first; files are not checked."""
        found = []
        for path in self.generations.glob("*.json"):
            try:
                found.append(read_manifest(path))
            except (NotAManifest, OSError):
                continue  # damaged, or retired since it was listed
        return sorted(found, key=lambda manifest: manifest.generation, reverse=True)

    def fallbacks(self) -> list[Manifest]:
        """Return the generations that may stand in for the current one, newest first.

        Those that readers were rolled back from are not among them.
        """
        return [kept for kept in self.kept() if not self.withheld_mark(kept).exists()]

    def find(self, generation: int | None) -> Manifest:
        """Return the generation of that number, or the current one for None.

        Raises:
            NothingPublished: The store does not have it.
        """
        current = self.latest()
        for manifest in ([current] if current else []) + self.kept():
            if generation in (None, manifest.generation):
                return manifest
        what = "Nothing is" if generation is None else f"Generation {generation} is not"
        raise NothingPublished(f"{what} published in {self.root}; publish into it first.")

    def find_at(self, at: At) -> Manifest:
        """Return the kept generation of that number, or the last one published by that time.

        Raises:
            NothingPublished: None is kept; the text names those that are.
            ValueError: It is a time without a zone, or a text that is no number, day or time.
        """
        wanted = parse_at(at)
        if (found := self.kept_at(wanted)) is not None:
            return found
        raise NothingPublished(
            f"{at_in_words(wanted)} is not kept in {self.root}; kept are "
            f"{kept_in_words(self.kept())}. Name one of these, or pull it from a block store."
        )

    def kept_at(self, at: int | datetime) -> Manifest | None:
        """Return the kept generation of that number, or the last one published by that time."""
        kept = self.kept()
        if isinstance(at, int):
            return next((one for one in kept if one.generation == at), None)
        earlier = [one for one in kept if one.published_at <= at]
        return max(earlier, key=lambda one: one.published_at, default=None)

    def numbers(self) -> Iterator[int]:
        """Yield the generation number of every file in the store."""
        for folder in (self.generations, self.candidates, self.spares):
            if not folder.is_dir():
                continue
            for path in folder.iterdir():
                if (generation := generation_in(path.name)) is not None:
                    yield generation
