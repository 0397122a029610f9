"""The workers' outbox files as a Dagster resource."""

from pathlib import Path

import dagster as dg


class Outboxes(dg.ConfigurableResource):
    """Every outbox file of this node: the `*.db` in one folder, one a worker slot."""

    folder: str

    def paths(self) -> list[Path]:
        """The files that are there now, by name."""
        return sorted(Path(self.folder).glob("*.db"))
