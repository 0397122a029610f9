"""One trouble: what is wrong, since when, why, and the page of the Dagster UI that shows it."""

from dataclasses import dataclass
from datetime import UTC, datetime

from replica_platform.core.reports import format_age

LONGEST = 1000  # characters of a cause; its page has all of it


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong now.

    Attributes:
        key: What it is told under, once until it ends.
        what: What is wrong, as the beginning of a sentence: `Schedule shop_sync fails`.
        why: The cause and what to do next, as sentences.
        since: When it began, in seconds since 1970.
        page: The path of its page in the Dagster UI.
        patience_s: How long it must last before it is told, in seconds.
        run_id: The run that failed; empty for other troubles.
    """

    key: str
    what: str
    why: str
    since: float
    page: str
    patience_s: float = 0.0
    run_id: str = ""

    def alert(self, ui_url: str) -> str:
        """Return the line that tells it: what, since when, why and what to do, and its page."""
        why = one_line(self.why)
        why = why if len(why) <= LONGEST else f"{why[:LONGEST]}…"
        return f"{one_line(self.what)} since {_moment(self.since)}: {why} {ui_url}{self.page}"

    def recovered(self, ui_url: str, now: float) -> str:
        """Return the line that tells its end, and how long it lasted."""
        lasted = format_age(now - self.since)
        what = one_line(self.what)
        return f"Recovered after {lasted}: {what} since {_moment(self.since)}. {ui_url}{self.page}"


def one_line(text: str) -> str:
    """Return a text without line breaks, since an alert is one line."""
    return " ".join(text.split())


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
