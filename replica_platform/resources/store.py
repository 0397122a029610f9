"""The store of a published replica, as the definition of its asset names it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replica_platform.replica import BlockStore
from replica_platform.resources.platform import PlatformConfig

# Under these names an asset's metadata tells its IO manager where its generations are.
STORE, BLOCKS, SHARED_BLOCKS = "store", "block_store", "shared_block_store_folder"
# Whether a publication is compared with the one before it; it is where this is not said.
SHOWS_CHANGES = "shows_changes"


@dataclass(frozen=True)
class ReplicaStore:
    """The folder of published generations, and the block store that keeps a second copy.

    Attributes:
        path: The folder.
        blocks: A folder or a URL such as `s3://bucket/prefix`. Every publication sends its new
            blocks there; a damaged replica is repaired from there. None: no second copy.
    """

    path: Path
    blocks: str | None = None

    @property
    def block_store(self) -> BlockStore | None:
        """The block store; None where none is configured."""
        return BlockStore(self.blocks) if self.blocks else None


def store_metadata(store: str, blocks: str | None, shared_folder: str) -> dict[str, str]:
    """Return the metadata of an asset that names its store.

    Args:
        store: The folder of the generations, absolute or below the data folder.
        blocks: The block store; None for a folder of the one of the settings.
        shared_folder: The name of that folder.
    """
    return {STORE: store, **({BLOCKS: blocks} if blocks else {SHARED_BLOCKS: shared_folder})}


def store_of(platform: PlatformConfig, metadata: Mapping[str, Any]) -> ReplicaStore:
    """Return the store that the metadata of an asset names."""
    blocks = metadata.get(BLOCKS)
    if blocks and "://" not in blocks:
        blocks = str(platform.path(blocks))
    elif not blocks and platform.block_store:
        blocks = f"{platform.block_store.rstrip('/')}/{metadata[SHARED_BLOCKS]}"
    return ReplicaStore(platform.path(metadata[STORE]), blocks)
