"""One owner for each store: a purpose, or the whole master."""

from pathlib import Path

from replica_platform.replica.errors import WrongStore
from replica_platform.replica.store.layout import Layout


def assert_own_store(layout: Layout, purpose: str | None) -> None:
    """Refuse a store with a generation of anything but `purpose` (None: the whole master).

    Raises:
        WrongStore: Names both.
    """
    latest = layout.latest()
    for manifest in ([latest] if latest else []) + layout.kept():
        assert_same_purpose(layout.root, manifest.purpose, purpose)


def assert_same_purpose(store: Path | str, held: str | None, purpose: str | None) -> None:
    """Refuse to put a generation of `purpose` into a store that holds one of `held`.

    Raises:
        WrongStore: Names both.
    """
    if held != purpose:
        raise WrongStore(
            f"{store} holds {_describe(held)}, and this would give its readers "
            f"{_describe(purpose)}; nothing was changed. Use another store for it, or first "
            "remove this one, if its content is not needed."
        )


def _describe(purpose: str | None) -> str:
    return "the whole master" if purpose is None else f"the purpose {purpose}"
