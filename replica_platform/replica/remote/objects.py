"""The few acts on an object store that generations need, on a folder and on a bucket alike.

Objects are made once and never overwritten: DuckDB and caches read garbage from one that is. So
even the pointer is a row of objects, each made only if nobody made it before.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from replica_platform.replica.errors import BlockStoreUnavailable

RETRIES: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}


class Objects:
    """Objects below `where`: a folder, or a URL such as s3://bucket/prefix.

    config: what obstore takes for that kind of store (`endpoint`, `access_key_id`, …); what is
    left out comes from the environment, as the AWS tools have it.
    """

    def __init__(self, where: str | Path, **config: Any) -> None:
        try:
            from obstore.store import LocalStore, from_url
        except ModuleNotFoundError as error:
            raise BlockStoreUnavailable(
                "A block store needs the `store` extra; install replica-platform[store]."
            ) from error
        self.where = str(where)
        with self._explaining():
            if "://" in self.where:
                options = {"retry_config": RETRIES, **config}
                self._store: Any = from_url(self.where, **options)
            else:
                self._store = LocalStore(Path(where).absolute(), mkdir=True)

    def make(self, name: str, content: bytes) -> bool:
        """Make the object; False if it is there already, and then it stays as it was."""
        import obstore

        with self._explaining():
            try:
                obstore.put(self._store, name, content, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def replace(self, name: str, content: bytes) -> None:
        """Put the object whether it is there or not: only to mend one that is damaged."""
        import obstore

        with self._explaining():
            obstore.put(self._store, name, content, use_multipart=False)

    def read(self, name: str) -> bytes | None:
        """The object's content; None if there is none."""
        import obstore

        with self._explaining():
            try:
                return bytes(obstore.get(self._store, name).bytes())
            except FileNotFoundError:
                return None

    def names(self, prefix: str) -> dict[str, datetime]:
        """The objects below `prefix`, and when each was made."""
        import obstore

        with self._explaining():
            found = [meta for batch in obstore.list(self._store, prefix) for meta in batch]
        return {meta["path"]: meta["last_modified"] for meta in found}

    def remove(self, names: list[str]) -> None:
        """Remove objects; those that are gone already are passed over."""
        import obstore

        with self._explaining():
            for name in names:
                try:
                    obstore.delete(self._store, name)
                except FileNotFoundError:
                    continue

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        import obstore

        try:
            yield
        except (obstore.exceptions.BaseError, OSError) as error:
            said = " ".join(str(error).split())[:200]
            raise BlockStoreUnavailable(
                f"The block store {self.where} does not do what is asked ({said}); generations "
                "here are as they were. Check its address, credentials and room, and try again."
            ) from error
