"""The folders of published generations as a Dagster resource."""

from pathlib import Path

import dagster as dg

from replica_platform.replica import BlockStore

MARKET_REPLICA = dg.AssetKey("market_replica")


class ReplicaStore(dg.ConfigurableResource):
    """The folder of published generations, and the block store that keeps a second copy.

    Attributes:
        folder: The store of the market's replica; each purpose has a store below it.
        keep: How many generations are kept.
        blocks: A folder or a URL such as `s3://bucket/prefix`. Every publication sends its new
            blocks there; a damaged replica is repaired from there. None: no second copy.
    """

    folder: str
    keep: int = 3
    blocks: str | None = None

    @property
    def path(self) -> Path:
        """The store of the market's replica."""
        return Path(self.folder)

    def path_of(self, key: dg.AssetKey) -> Path:
        """Return the store of an asset's replica: each purpose has its own folder."""
        return self.path if key == MARKET_REPLICA else self.path / "purposes" / key.path[-1]

    def block_store(self, key: dg.AssetKey) -> BlockStore | None:
        """Return the block store of an asset's generations; None where none is configured."""
        return BlockStore(f"{self.blocks.rstrip('/')}/{key.path[-1]}") if self.blocks else None
