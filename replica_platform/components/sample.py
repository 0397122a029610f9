"""Whether entries of a `defs.yaml` that belong to the sample become part of a platform."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

# A variable of the context, since two platforms of one process may differ in it, and Dagster
# builds components from their files alone.
_INCLUDED = ContextVar("sample_is_included", default=True)


class _Entry(Protocol):
    @property
    def sample(self) -> bool: ...


Entry = TypeVar("Entry", bound=_Entry)


@contextmanager
def sample_included(included: bool) -> Iterator[None]:
    """Build components with or without the entries of the sample."""
    token = _INCLUDED.set(included)
    try:
        yield
    finally:
        _INCLUDED.reset(token)


def sample_is_included() -> bool:
    """Whether components are built with the entries of the sample."""
    return _INCLUDED.get()


def without_sample(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries, those of the sample only if it is included."""
    return [entry for entry in entries if sample_is_included() or not entry.sample]
