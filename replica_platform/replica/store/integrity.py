"""Whether a generation's file is, byte for byte, what its manifest says.

DuckDB, given a file with swapped blocks, can answer wrongly or end the process, so files are
checked before DuckDB opens them. Uses the standard library, and `xxhash` where bytes are read.
"""

from contextlib import suppress
from pathlib import Path

from replica_platform.replica.copy import blocks
from replica_platform.replica.copy.file_format import logs_beside
from replica_platform.replica.store.manifest import Manifest, Seal, damage_mark


class Unusable(Exception):
    """The generation cannot be read.

    Attributes:
        transient: Whether another attempt may succeed although its file did not change.
    """

    def __init__(self, problem: str, *, transient: bool = False) -> None:
        super().__init__(problem)
        self.transient = transient


class Damaged(Unusable):
    """The generation's bytes are not what was published; only another file can help."""


def is_sealed(path: Path, manifest: Manifest) -> bool:
    """Return whether the file is as the publisher left it after verifying every byte.

    Any write, truncation or replacement through the file system breaks the seal; then only the
    digests tell.

    Raises:
        OSError: The file is missing or may not be read.
    """
    return manifest.seal is not None and manifest.seal == Seal.of(path)


def find_traces(path: Path, manifest: Manifest) -> str | None:
    """Return what is wrong with a generation, as far as that shows without reading its file.

    The end of a sentence that begins with the generation; None when nothing is.
    """
    try:
        if not _check_traces(path, manifest):
            return f"may be damaged: {path.name} was touched since it was verified"
    except (Unusable, OSError) as error:
        return f"is damaged: {error}"
    return None


def _check_traces(path: Path, manifest: Manifest) -> bool:
    """Look for logs beside the file, the mark of a scrub and another size; return if it is sealed.

    Raises:
        Damaged: A scrub found damage, or the size is another one.
        Unusable: A foreign log lies beside it.
        OSError: The file is missing or may not be read.
    """
    for log in logs_beside(path):
        raise Unusable(f"a foreign log {log.name} lies beside it; remove it")
    # The disk may return the right bytes today, from the page cache for example.
    with suppress(FileNotFoundError):
        raise Damaged(damage_mark(path).read_text(errors="replace") or "a scrub found damage")
    size = path.stat().st_size
    if size != manifest.bytes:
        raise Damaged(f"{path.name} has {size} bytes instead of {manifest.bytes}")
    return is_sealed(path, manifest)


def check(path: Path, manifest: Manifest, *, read_all: bool = False) -> None:
    """Make sure that the file at `path` is what the manifest says.

    Args:
        path: The file.
        manifest: What it has to be.
        read_all: Read every byte even if the seal is unbroken.

    Raises:
        Damaged: Its bytes are not, or a scrub found that they are not.
        Unusable: A foreign log lies beside it, or its bytes cannot be compared.
        OSError: The file is missing or may not be read.
    """
    if _check_traces(path, manifest) and not read_all:
        return
    try:
        found = blocks.digest_blocks(path)
    except ModuleNotFoundError as error:
        raise Unusable(
            f"{path.name} was touched since it was verified, and reading it again needs xxhash"
        ) from error
    published = manifest.block_digests
    if found != published:
        wrong = sum(ours != theirs for ours, theirs in zip(found, published, strict=False))
        raise Damaged(f"{wrong} of {len(found)} blocks of {path.name} are not what was published")


def find_damage(path: Path, manifest: Manifest, *, read_all: bool = False) -> str | None:
    """Return what is wrong with the file, see `check`; None when nothing is."""
    try:
        check(path, manifest, read_all=read_all)
    except FileNotFoundError:
        return f"{path} is missing"
    except (Unusable, OSError) as error:
        return str(error)
    return None
