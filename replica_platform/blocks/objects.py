"""Requests to an object store, the same for a folder and a bucket.

Objects are created once and never overwritten: caches read garbage from one that is. A pointer is
a series of objects, each created only if it does not exist yet.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from replica_platform.blocks.errors import BlockStoreUnavailable
from replica_platform.core.files import fsync_dir, fsync_file

# One request may hang for this time; the retries go on for longer, so that it fails alone.
REQUEST_TIMEOUT = timedelta(seconds=20)
RETRIES: Any = {"max_retries": 6, "retry_timeout": timedelta(seconds=120)}
CREATE_ATTEMPTS = 3
CREATE_PAUSE_S = 0.5
# Above, one sync of all file systems is quicker than one for each object.
SYNC_EACH = 256


class Objects:
    """The objects in a folder, or below a URL such as s3://bucket/prefix.

    Args:
        where: The folder or the URL.
        **config: Options of obstore for that kind of store (`endpoint`, `access_key_id`, …); the
            environment, with the names of the AWS tools, provides the others.

    Raises:
        BlockStoreUnavailable: The `store` extra is not installed, or the address is wrong.
    """

    def __init__(self, where: str | Path, **config: Any) -> None:
        try:
            from obstore.store import LocalStore, from_url
        except ModuleNotFoundError as error:
            raise BlockStoreUnavailable(
                "A block store needs the `store` extra; install replica-platform[store]."
            ) from error
        self.where = str(where)
        # What `make_durable` has to bring to the disk.
        self._written: list[str] = []
        with translate_errors(self.where):
            if "://" in self.where:
                # Given any options, obstore reads this one no longer from the environment.
                allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
                client = {"timeout": REQUEST_TIMEOUT, "allow_http": allow_http}
                client |= config.pop("client_options", {})
                options = {"retry_config": RETRIES, "client_options": client, **config}
                self._store: Any = from_url(self.where, **options)
            else:
                self._store = LocalStore(Path(where).absolute(), mkdir=True)

    def create(self, name: str, content: bytes) -> bool:
        """Create an object; return False, and change nothing, if it exists.

        False also where an attempt succeeded and its acknowledgement was lost.

        Raises:
            BlockStoreUnavailable: The request failed.
        """
        import obstore

        # obstore itself does not send a request again that timed out and may have had an effect.
        with translate_errors(self.where):
            for attempt in range(CREATE_ATTEMPTS):
                try:
                    obstore.put(self._store, name, content, mode="create", use_multipart=False)
                except obstore.exceptions.AlreadyExistsError:
                    return False
                except obstore.exceptions.GenericError:
                    if attempt == CREATE_ATTEMPTS - 1:
                        raise
                    time.sleep(CREATE_PAUSE_S * 2**attempt)
                else:
                    self._written.append(name)
                    return True
        raise AssertionError("unreachable: the last attempt returns or raises")

    def replace(self, name: str, content: bytes) -> None:
        """Create or overwrite an object, to repair a damaged one.

        Raises:
            BlockStoreUnavailable: The request failed.
        """
        import obstore

        with translate_errors(self.where):
            obstore.put(self._store, name, content, use_multipart=False)
        self._written.append(name)

    def read(self, name: str) -> bytes | None:
        """Return an object's content; None if it does not exist.

        Raises:
            BlockStoreUnavailable: The request failed.
        """
        import obstore

        with translate_errors(self.where):
            try:
                return bytes(obstore.get(self._store, name).bytes())
            except FileNotFoundError:
                return None

    def exists(self, name: str) -> bool:
        """Return whether an object exists.

        Raises:
            BlockStoreUnavailable: The request failed.
        """
        import obstore

        with translate_errors(self.where):
            try:
                obstore.head(self._store, name)
            except FileNotFoundError:
                return False
        return True

    def rename(self, name: str, to: str) -> None:
        """Rename an object; one that does not exist is skipped.

        Raises:
            BlockStoreUnavailable: The request failed.
        """
        import obstore

        with translate_errors(self.where), suppress(FileNotFoundError):
            obstore.rename(self._store, name, to)

    def make_durable(self) -> None:
        """Bring what was created or replaced in a folder to the disk.

        The objects of a bucket are durable when it answers.
        """
        if "://" in self.where:
            return
        written, self._written = self._written, []
        if len(written) > SYNC_EACH:
            os.sync()
            return
        root = Path(self.where)
        for name in written:
            with suppress(FileNotFoundError):  # removed or renamed since
                fsync_file(root / name)
        for folder in {above for name in written for above in (root / name).parents}:
            if folder == root or root in folder.parents:
                with suppress(FileNotFoundError):
                    fsync_dir(folder)

    def names(self, prefix: str) -> dict[str, datetime]:
        """Return when each object below `prefix` was created, by its name.

        Raises:
            BlockStoreUnavailable: The request failed.
        """
        import obstore

        with translate_errors(self.where):
            found = [meta for batch in obstore.list(self._store, prefix) for meta in batch]
        return {meta["path"]: meta["last_modified"] for meta in found}

    def remove(self, names: list[str]) -> None:
        """Remove objects; those that do not exist are skipped.

        Raises:
            BlockStoreUnavailable: A request failed.
        """
        import obstore

        with translate_errors(self.where):
            for name in names:
                try:
                    obstore.delete(self._store, name)
                except FileNotFoundError:
                    continue


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """Turn obstore's errors into those of this package.

    Raises:
        BlockStoreUnavailable: The request failed.
    """
    import obstore

    try:
        yield
    except (obstore.exceptions.BaseError, OSError) as error:
        message = " ".join(str(error).split())[:200]
        raise BlockStoreUnavailable(
            f"A request to the block store {where} failed ({message}); nothing here was "
            "changed. Check its address, credentials and free space, and try again."
        ) from error
