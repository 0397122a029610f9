"""Publication of a generation: how every replica reaches its readers."""

import dagster as dg

from replica_platform.metadata import change
from replica_platform.policies import translate_errors
from replica_platform.replica import Candidate, ReplicaReader
from replica_platform.resources.store import ReplicaStore


class PublishedReplicaIOManager(dg.ConfigurableIOManager):
    """Releases the candidate that an asset returns, and gives downstream assets a reader.

    The candidate is closed and verified. If the run fails before its release, readers stay on
    the current generation.
    """

    store: dg.ResourceDependency[ReplicaStore]

    def handle_output(self, context: dg.OutputContext, obj: Candidate) -> None:
        """Release the candidate, then send its blocks to the block store, if there is one.

        Where the master did not change, only the time of the publication is renewed.
        """
        blocks = self.store.block_store(context.asset_key)
        with translate_errors():
            publication = obj.release()
            pushed = blocks.push(obj.store) if blocks else None
        manifest = publication.manifest
        context.add_output_metadata(
            {
                **change(
                    publication.how != "unchanged",
                    f"generation {publication.generation} published ({publication.how})",
                ),
                "dagster/row_count": sum(table.rows for table in manifest.tables.values()),
                "dagster/uri": str(publication.file),
                "generation": publication.generation,
                "bytes": publication.bytes,
                "blocks_written": publication.blocks_written,
                "publication_seconds": publication.seconds,
                "digest": publication.digest,
                **({"pushed_bytes": pushed.bytes_sent} if pushed else {}),
            }
        )

    def load_input(self, context: dg.InputContext) -> ReplicaReader:
        """Return a reader of the current generation; the caller closes it."""
        return ReplicaReader(self.store.path_of(context.asset_key))
