"""Which generations a block store has, and which is current; the blocks are those of `blocks.pool`.

The pointer moves by creating the next object only if it does not exist: a compare-and-swap that a
folder and every S3 support.
"""

import json
import secrets
from contextlib import suppress
from pathlib import Path

from replica_platform.blocks.errors import BlockStoreDamaged
from replica_platform.blocks.objects import Objects
from replica_platform.blocks.pool import all_digests
from replica_platform.replica.errors import NothingPublished, PointerMoved
from replica_platform.replica.store.manifest import Manifest, NotAManifest, generation_in
from replica_platform.replica.store.moment import At, at_in_words, parse_at


class Index:
    """The manifests and the pointer of a block store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def names(self) -> list[str]:
        """Return the names of the manifests, newest generation first."""
        names = [name for name in self._objects.names("manifests") if generation_in(name)]
        return sorted(names, key=lambda name: (generation_in(name), name), reverse=True)

    def read_all(self) -> dict[str, Manifest]:
        """Return each manifest by its name: its blocks exist, because it is sent last."""
        found: dict[str, Manifest] = {}
        for name in self.names():
            raw = self._objects.read(name)
            if raw is not None:
                found[name] = self._parsed(name, raw)
        return found

    def needed(self) -> set[str]:
        """Return the digests of all blocks that a manifest names."""
        return all_digests(manifest.block_digests for manifest in self.read_all().values())

    def add(self, manifest: Manifest) -> None:
        """Create a generation's manifest, once its blocks are there."""
        self._objects.create(f"manifests/{stem(manifest)}.json", manifest.to_json())

    def find(self, at: At | None) -> Manifest:
        """Return the generation of that number, the last of that time, or the current one for None.

        Raises:
            NothingPublished: It is not there.
            ValueError: It is a time without a zone, or a text that is no number, day or time.
        """
        if at is None:
            current = self.last_pointer()[1]
            if current is None:
                raise NothingPublished(
                    f"Nothing was pushed to {self._objects.where} yet; push a generation first."
                )
            return current
        wanted = parse_at(at)
        for name in self.names():
            is_other = isinstance(wanted, int) and generation_in(name) != wanted
            raw = None if is_other else self._objects.read(name)
            manifest = self._parsed(name, raw) if raw is not None else None
            if manifest and (isinstance(wanted, int) or manifest.published_at <= wanted):
                return manifest
        kept = ", ".join(str(generation_in(name)) for name in self.names())
        raise NothingPublished(
            f"{at_in_words(wanted)} is not kept in {self._objects.where}; kept are "
            f"{kept or 'none'}. Name one of these."
        )

    def last_pointer(self) -> tuple[int, Manifest | None]:
        """Return the pointer's number and manifest; 0 and None before the first push."""
        names = sorted(self._objects.names("pointers"))
        if not names:
            return 0, None
        raw = self._objects.read(names[-1])
        if raw is None:  # pruned since it was listed: there is a newer one
            return self.last_pointer()
        return int(Path(names[-1]).stem), self._parsed(names[-1], _manifest_in(raw))

    def move_pointer(self, number: int, manifest: Manifest) -> None:
        """Make a generation current, if the pointer still has that number.

        Raises:
            PointerMoved: Another process moved it at the same time.
        """
        name = f"pointers/{number + 1:08d}.json"
        # Names this attempt: where its acknowledgement was lost, a retry finds the object there.
        attempt = secrets.token_hex(8)
        content = json.dumps({"attempt": attempt, "manifest": manifest.to_json().decode()})
        if not self._objects.create(name, content.encode()) and (
            self._objects.read(name) != content.encode()
        ):
            raise PointerMoved(
                f"Another process moved the pointer of {self._objects.where} at the same time; the "
                "blocks are there and nothing is lost. See what is current, and push again."
            )

    def withdraw_earlier_definitions(self, manifest: Manifest) -> list[int]:
        """Remove the manifests of earlier definitions of a purpose, which may have shown more."""
        if manifest.purpose is None:
            return []
        earlier = [name for name, one in self.read_all().items() if one.recipe != manifest.recipe]
        self._objects.remove(earlier)
        return sorted(generation_in(name) or 0 for name in earlier)

    def _parsed(self, name: str, raw: bytes) -> Manifest:
        try:
            return Manifest.from_json(raw)
        except NotAManifest as error:
            raise BlockStoreDamaged(
                f"{name} in {self._objects.where} is damaged ({error}); remove it, and push again."
            ) from error


def stem(manifest: Manifest) -> str:
    """Return the name of a generation's manifest without its folder and suffix."""
    return Path(manifest.file).stem


def _manifest_in(raw: bytes) -> bytes:
    """Return the manifest that a pointer contains; former versions wrote nothing else."""
    with suppress(ValueError, TypeError):
        fields = json.loads(raw)
        if "attempt" in fields:
            return str(fields["manifest"]).encode()
    return raw
