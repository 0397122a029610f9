"""The settings of `replica sync`, read without the others where none of them is set.

A sync of an idle table takes less time than the import of pydantic.
"""

import os
from dataclasses import dataclass
from pathlib import Path

NAMES = {"XMIN_WORKERS", "XMIN_BATCH_BYTES"}


@dataclass(frozen=True)
class SyncSettings:
    """The settings of a sync.

    Attributes:
        workers: How many pairs of connections copy side by side; None chooses.
        batch_bytes: How many bytes of heap a range holds; None chooses.
    """

    workers: int | None = None
    batch_bytes: int | None = None


def sync_settings() -> SyncSettings:
    """Return the settings of a sync.

    Raises:
        pydantic.ValidationError: A setting is not valid.
    """
    if not NAMES & {name.upper() for name in os.environ} and not Path(".env").exists():
        return SyncSettings()
    from replica_platform.app.settings import Settings

    settings = Settings()
    return SyncSettings(settings.xmin_workers, settings.xmin_batch_bytes)
