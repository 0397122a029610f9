"""Whose a store is: one purpose's, or the whole master's, never both."""

from pathlib import Path

from replica_platform.replica.errors import WrongStore
from replica_platform.replica.store.layout import Layout


def assert_own_store(layout: Layout, purpose: str | None) -> None:
    """Refuse a store that holds generations of anything but `purpose` (None: the whole master).

    Raises:
        WrongStore: Names both.
    """
    latest = layout.latest()
    for manifest in ([latest] if latest else []) + layout.kept():
        assert_same_purpose(layout.root, manifest.purpose, purpose)


def assert_same_purpose(place: Path | str, held: str | None, purpose: str | None) -> None:
    """Refuse to put a generation of `purpose` where one of `held` is.

    Raises:
        WrongStore: Names both.
    """
    if held != purpose:
        raise WrongStore(
            f"{place} holds {_called(held)}, and this would give its readers {_called(purpose)}; "
            "nothing was changed. Use another place for it; or, where what is there is not "
            "needed, remove that first."
        )


def _called(purpose: str | None) -> str:
    return "the whole master" if purpose is None else f"the purpose {purpose}"
