"""The store on disk: where generations, candidates, leases and the pointer are.

    generations/000012-3fa9c1d2.duckdb   immutable, read-only; .json beside it is its manifest,
                                         .lease is locked by whoever reads it
    candidates/                          built and verified, not yet visible
    spare/                               a retired generation that the next one is patched from
    current.json                         the manifest of the current generation, replaced last
    stock_data_replica.db                a link to the current generation

Names and reading only, by the standard library alone; what moves files is in `publish`.
"""

from collections.abc import Iterator
from pathlib import Path

from replica_platform.replica.store.manifest import Manifest, NotAManifest, Seal, read_manifest

LINK = "stock_data_replica.db"


class Layout:
    """The names in the store at `root`."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        self.generations = self.root / "generations"
        self.candidates = self.root / "candidates"
        self.spares = self.root / "spare"
        self.pointer = self.root / "current.json"
        self.link = self.root / LINK
        self.lock = self.root / ".publish.lock"

    def data(self, manifest: Manifest) -> Path:
        """The generation's file."""
        return self.generations / manifest.file

    def manifest_path(self, manifest: Manifest) -> Path:
        return self.data(manifest).with_suffix(".json")

    def lease(self, manifest: Manifest) -> Path:
        """The file that readers of the generation hold a shared lock on."""
        return self.data(manifest).with_suffix(".lease")

    def current(self) -> Manifest | None:
        """The current generation; None before the first. Errors: `NotAManifest`, `OSError`."""
        try:
            return read_manifest(self.pointer)
        except FileNotFoundError:
            return None

    def latest(self) -> Manifest | None:
        """The current generation, or the newest kept where the pointer is damaged or lost."""
        try:
            current = self.current()
        except NotAManifest:
            current = None
        return current or next(iter(self.kept()), None)

    def kept(self) -> list[Manifest]:
        """Every generation with a sound manifest, newest first, whether its file is good or not."""
        found = []
        for path in self.generations.glob("*.json"):
            try:
                found.append(read_manifest(path))
            except (NotAManifest, OSError):
                continue  # retired meanwhile, or damaged: not a generation to offer
        return sorted(found, key=lambda manifest: manifest.generation, reverse=True)

    def numbers(self) -> Iterator[int]:
        """Every generation number that a file in the store bears."""
        for folder in (self.generations, self.candidates, self.spares):
            if not folder.is_dir():
                continue
            for path in folder.iterdir():
                if path.name[:6].isdigit():
                    yield int(path.name.split("-")[0])


def sealed(path: Path, manifest: Manifest) -> bool:
    """Whether the file is as the publisher left it after verifying every byte.

    Any write, truncation or replacement through the file system changes the seal's figures; then
    the digest must be asked. Errors: `OSError`.
    """
    return manifest.seal is not None and manifest.seal == Seal.of(path)
