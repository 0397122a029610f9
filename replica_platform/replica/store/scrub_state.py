"""When the bytes of each file were last read: the state of a scrub, in `scrub.json` in the store.

A generation that is patched from a spare is the same file on the disk, of which a publication reads
only the blocks that may have changed. So the state belongs to the file, by its inode, and goes on
from one generation to the next.
"""

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from replica_platform.core.files import write_atomically
from replica_platform.replica.store.layout import Layout
from replica_platform.replica.store.manifest import Manifest, now

# Within this time every byte is read: by a scrub, else by a publication.
WITHIN_S = 7 * 86_400.0


@dataclass
class Round:
    """How far a file was read.

    Attributes:
        next_block: The block to read next.
        since: When the last round ended; every byte was right then.
    """

    next_block: int
    since: datetime

    def due(self, blocks: int, ahead_s: float, within_s: float) -> range:
        """Return the blocks that have to be read now, to read all of them within the time."""
        age_s = (now() - self.since).total_seconds() + ahead_s
        share = min(1.0, max(0.0, age_s / within_s)) if within_s > 0 else 1.0
        return range(self.next_block, math.ceil(share * blocks))


@dataclass(frozen=True)
class ScrubState:
    """How far each file was read.

    Attributes:
        last: When the last scrub was; None before the first.
        rounds: How far it came, by inode; by the generation's file in the form of former versions.
    """

    last: datetime | None
    rounds: dict[str, Round]

    @classmethod
    def load(cls, layout: Layout) -> "ScrubState":
        """Return the state of a store; of a damaged one, nothing is known."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            fields = json.loads(layout.scrub_state.read_bytes())
            last = datetime.fromisoformat(fields["last"])
            saved = {**fields.get("generations", {}), **fields.get("files", {})}
            return cls(
                last,
                {
                    file: Round(int(one["next_block"]), datetime.fromisoformat(one["since"]))
                    for file, one in saved.items()
                },
            )
        return cls(None, {})

    def round_of(self, manifest: Manifest, inode: int | None) -> Round:
        """Return how far a generation's file, of that inode, was read."""
        # When it was published its bytes were read, or those of the spare had been at that time.
        begun = Round(0, manifest.bytes_read_at)
        saved = self.rounds.get(str(inode)) or self.rounds.get(manifest.file) or begun
        # An older round belongs to another file, whose inode was used again.
        found = saved if saved.since >= begun.since else begun
        # After a clock that jumped back, the age is unknown: read on from now.
        return Round(found.next_block, min(found.since, now()))


def fully_read_at(layout: Layout, spare: Manifest) -> datetime | None:
    """Return when a spare's bytes had all been read; None if that is more than a week ago."""
    inode = spare.seal.inode if spare.seal else None
    read_at = ScrubState.load(layout).round_of(spare, inode).since
    return read_at if (now() - read_at).total_seconds() <= WITHIN_S else None


def save_scrub_state(layout: Layout, rounds: dict[str, Round]) -> None:
    """Save how far each file was read, by inode, and the time."""
    files = {
        inode: {"next_block": round_.next_block, "since": round_.since.isoformat()}
        for inode, round_ in rounds.items()
    }
    fields = {"last": now().isoformat(), "files": files}
    write_atomically(layout.scrub_state, json.dumps(fields, indent=1).encode())
