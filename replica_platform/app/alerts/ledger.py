"""What was told to whom: the troubles that last, and the messages that wait for a receiver.

It is the cursor of the sensor `alerts`, so that it is in Dagster's database, where the troubles are
found too, and needs no database that may itself be the trouble. A look that is killed between a
delivery and its end delivers again: a message may arrive twice, none is lost.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from replica_platform.app.alerts.trouble import Trouble

# A receiver that is down for long leaves out what has ended meanwhile, above this number.
MOST_WAITING = 500
FORMAT = 1


@dataclass(frozen=True)
class Message:
    """A line for a receiver.

    Attributes:
        key: The trouble's key.
        text: The line.
        over: Whether it tells the end of the trouble.
    """

    key: str
    text: str
    over: bool


@dataclass
class Ledger:
    """The state of all alerts.

    Attributes:
        ui_url: The address of the Dagster UI, which lines lead to.
        looked_at: The time of the last look, in seconds since 1970; None before the first one.
        lasting: The troubles that were there at the last look.
        told: The keys of those that were told.
        waiting: The messages that each receiver has not taken yet, oldest first.
    """

    ui_url: str
    looked_at: float | None = None
    lasting: dict[str, Trouble] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    waiting: dict[str, list[Message]] = field(default_factory=dict)

    @classmethod
    def read(cls, cursor: str | None, ui_url: str) -> "Ledger":
        """Return the ledger of a cursor; an empty one where there is none, or of another format."""
        saved: dict[str, Any] = json.loads(cursor) if cursor else {}
        if saved.get("format") != FORMAT:
            return cls(ui_url)
        known = {one.name for one in fields(Trouble)}
        lasting = (
            Trouble(**{name: value for name, value in one.items() if name in known})
            for one in saved["lasting"]
        )
        return cls(
            ui_url,
            saved["looked_at"],
            {one.key: one for one in lasting},
            set(saved["told"]),
            {name: [Message(*one) for one in lines] for name, lines in saved["waiting"].items()},
        )

    def cursor(self) -> str:
        """Return the ledger as text that `read` takes."""
        return json.dumps(
            {
                "format": FORMAT,
                "looked_at": self.looked_at,
                "lasting": [asdict(one) for one in self.lasting.values()],
                "told": sorted(self.told),
                "waiting": {
                    name: [[one.key, one.text, one.over] for one in lines]
                    for name, lines in self.waiting.items()
                },
            }
        )

    def note(self, found: Iterable[Trouble], receivers: Sequence[str], now: float) -> None:
        """Take the troubles of a look over, and queue what is to be told of them.

        A trouble that lasts keeps its beginning. A new receiver is told what lasts already.

        Args:
            found: The troubles that there are now.
            receivers: The names of the receivers.
            now: The time of the look, in seconds since 1970.
        """
        present = {
            one.key: replace(one, since=min(one.since, self.lasting.get(one.key, one).since))
            for one in found
        }
        messages = [
            Message(key, self.lasting[key].recovered(self.ui_url, now), True)
            for key in self.lasting
            if key in self.told and key not in present
        ]
        self.told &= present.keys()
        earlier = [self._alert(present[key]) for key in present if key in self.told]
        for key, one in present.items():
            if key not in self.told and now - one.since >= one.patience_s:
                messages.append(self._alert(one))
                self.told.add(key)
        self.waiting = {
            name: self._shortened([*self.waiting.get(name, earlier), *messages])
            for name in receivers
        }
        self.lasting, self.looked_at = present, now

    def _alert(self, trouble: Trouble) -> Message:
        return Message(trouble.key, trouble.alert(self.ui_url), False)

    def _shortened(self, messages: list[Message]) -> list[Message]:
        """Return the messages without the oldest of those whose trouble is over, if there are many.

        The log has them all.
        """
        surplus = len(messages) - MOST_WAITING
        kept = []
        for one in messages:
            if surplus > 0 and one.key not in self.told:
                surplus -= 1
                continue
            kept.append(one)
        return kept
