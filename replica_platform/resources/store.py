"""The folder of published generations as a Dagster resource."""

from pathlib import Path

import dagster as dg


class ReplicaStore(dg.ConfigurableResource):
    """Where generations are published, and how many are kept."""

    folder: str
    keep: int = 3

    @property
    def path(self) -> Path:
        """Where the folder is."""
        return Path(self.folder)
