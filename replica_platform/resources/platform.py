"""The folders and limits that the settings give to assets, checks and sensors."""

from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from replica_platform.app.deck.stills import Stills


class PlatformConfig(dg.ConfigurableResource):
    """Folders and limits in force; the Dagster UI may show all of them.

    Attributes:
        data_dir: The data folder, absolute; paths of the `defs.yaml` files are below it.
        backup_dir: The folder of verified SQLite backups.
        bars: A folder or file of daily bars, or `yfinance`; the sample's bars when absent.
        symbols: Files or addresses of the NASDAQ's symbol directory, comma-separated.
        watch_rules: A YAML file of rules for the symbols to quote.
        xmin_workers: Connections that copy one table in parallel; measured when absent.
        xmin_batch_bytes: Bytes of a table that one connection reads at a time.
        keep_runs_days: Days after which runs, events and ticks leave Dagster's database.
        keep_generations: How many generations of a replica are kept.
        sample: Whether the entries of the sample belong to the platform.
        host: The name of this host; None where no entry names hosts.
        block_store: A folder or URL for a second copy of each generation; None for none.
    """

    data_dir: str
    backup_dir: str
    bars: str | None = None
    symbols: str | None = None
    watch_rules: str | None = None
    xmin_workers: int | None = None
    xmin_batch_bytes: int | None = None
    keep_runs_days: int = 14
    keep_generations: int = 3
    sample: bool = True
    host: str | None = None
    block_store: str | None = None

    def path(self, path: str) -> Path:
        """Return a path below the data folder; an absolute path stays as it is."""
        return Path(self.data_dir) / path

    def stills(self, *, by_a_person: bool, target: str = "") -> "Stills":
        """Return the pictures of a run, for the pages of its assets.

        Args:
            by_a_person: Whether a person started the run; then none waits for its turn.
            target: The DSN of the target, which has the history of tables and outboxes.
        """
        # Imported late: only runs draw.
        from replica_platform.app.deck.stills import Stills

        return Stills(target, self.path("deck/pictures"), always=by_a_person)

    @property
    def backups(self) -> Path:
        """The folder of verified SQLite backups."""
        return Path(self.backup_dir)

    @property
    def watch_rules_file(self) -> Path | None:
        """The rules for the symbols to quote; None for the default ones."""
        return Path(self.watch_rules) if self.watch_rules else None
