"""What components need of the machine while definitions are loaded: folders and source catalogs.

Dagster builds components from their files alone, and two platforms of one process differ in this,
so it is a variable of the context. What assets need when they run reaches them through resources.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
from dagster._core.definitions.definitions_load_context import (
    DefinitionsLoadContext,
    DefinitionsLoadType,
)

from replica_platform.app.catalog import Catalog, CatalogFolder
from replica_platform.app.entries.base import environment_dsn
from replica_platform.core.errors import PlatformError
from replica_platform.xmin import list_tables

log = logging.getLogger(__name__)

# A source that is away may delay the loading of definitions by this.
CONNECT_TIMEOUT_S = 3


@dataclass(frozen=True)
class Machine:
    """Folders and databases of the platform whose definitions are loaded.

    Attributes:
        data_dir: The data folder.
        source: The DSN of the source that entries have which name no other one.
    """

    data_dir: Path = field(default_factory=lambda: Path("data").absolute())
    source: str = field(default="", repr=False)
    _catalogs: dict[str | None, Catalog] = field(default_factory=dict, repr=False, compare=False)

    def path(self, path: str) -> Path:
        """Return a path below the data folder; an absolute path stays as it is."""
        return self.data_dir / path

    def catalog(self, source: str | None, *, needed: bool) -> Catalog:
        """Return the tables of a source; without an answer of it those that it had before.

        A code server asks the source; a run gets the list that its code server had. Where that is
        not kept on this host, the run asks the source too.

        Args:
            source: The environment variable of its DSN; None for the default source.
            needed: Whether a pattern needs it; otherwise it only describes tables.
        """
        if source not in self._catalogs:
            self._catalogs[source] = self._load(source, needed)
            # What a run of a code server is told; `with_catalog` tells that of this process alone.
            DefinitionsLoadContext.get().add_to_pending_reconstruction_metadata(
                metadata_key(source), self._catalogs[source].digest
            )
        return self._catalogs[source]

    def _load(self, source: str | None, needed: bool) -> Catalog:
        folder = CatalogFolder(self.data_dir, source)
        context = DefinitionsLoadContext.get()
        if not is_shown():
            told = context.reconstruction_metadata.get(metadata_key(source), "")
            found = folder.find(told)
            if found.digest == told:
                return found
            # The code server is on another host, and stored its list there.
        try:
            dsn = environment_dsn(source) if source else self.source
            if not dsn:
                return folder.newest()
            catalog = Catalog.of(list_tables(dsn, connect_timeout_s=CONNECT_TIMEOUT_S))
        except PlatformError as error:
            known = folder.newest()
            what = f"the {len(known.tables)} tables that it had" if known.digest else "no tables"
            level = logging.WARNING if needed else logging.DEBUG
            log.log(level, "The source does not tell its tables, so %s are taken: %s", what, error)
            return known
        folder.store(catalog)
        return catalog


_MACHINE: ContextVar[Machine | None] = ContextVar("machine", default=None)


@contextmanager
def loading_on(machine: Machine) -> Iterator[None]:
    """Load definitions for a machine."""
    token = _MACHINE.set(machine)
    try:
        yield
    finally:
        _MACHINE.reset(token)


def current_machine() -> Machine:
    """Return the machine that definitions are loaded for."""
    return _MACHINE.get() or Machine()


def is_shown() -> bool:
    """Whether the definitions that are loaded are shown; those of a run are not."""
    return DefinitionsLoadContext.get().load_type is DefinitionsLoadType.INITIALIZATION


def metadata_key(source: str | None) -> str:
    """Return under which key a run is told the catalog of its code server."""
    return f"replica_platform/catalog/{source or 'default'}"


def with_catalog(
    definitions: dg.Definitions, source: str | None, catalog: Catalog
) -> dg.Definitions:
    """Return definitions that tell their runs the catalog that they were built from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a preview in this version of Dagster, which is pinned
        return definitions.with_reconstruction_metadata({metadata_key(source): catalog.digest})
