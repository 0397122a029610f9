"""The folders of published generations as a Dagster resource."""

from pathlib import Path

import dagster as dg

from replica_platform.replica import BlockStore

MARKET_REPLICA = dg.AssetKey("market_replica")


class ReplicaStore(dg.ConfigurableResource):
    """Where generations are published, how many are kept, and where else their blocks go.

    `blocks` is a folder or a URL such as s3://bucket/prefix; what is published is pushed there,
    and what is damaged here is fetched from there. None: generations are here only.
    """

    folder: str
    keep: int = 3
    blocks: str | None = None

    @property
    def path(self) -> Path:
        """Where the market's replica is."""
        return Path(self.folder)

    def path_of(self, key: dg.AssetKey) -> Path:
        """Where the replica of an asset is: a purpose's in a folder of its own."""
        return self.path if key == MARKET_REPLICA else self.path / "purposes" / key.path[-1]

    def block_store(self, key: dg.AssetKey) -> BlockStore | None:
        """Where the blocks of an asset's generations go, None where no block store is set."""
        return BlockStore(f"{self.blocks.rstrip('/')}/{key.path[-1]}") if self.blocks else None
