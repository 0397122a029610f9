"""Charts of the deck as pictures for the pages of assets: SVG in markdown.

An event keeps its picture, so a picture has at most `MOST_BYTES`, and an asset gets one every
`EVERY_S` seconds; whoever materialises by hand always does. Without the extra `deck`, and where
nothing is recorded yet, there is none. A picture that cannot be drawn fails no run.
"""

import hashlib
import logging
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from replica_platform.app.deck import charts
from replica_platform.core.errors import PlatformError
from replica_platform.history import Past, Span, read
from replica_platform.pictures import PLAIN

log = logging.getLogger(__name__)

MOST_BYTES = 40_000
EVERY_S = 6 * 3600
# Of a run that finds hundreds of assets due: each picture takes a tenth of a second.
MOST_A_RUN = 20
# A cell of the calendar takes 250 bytes.
HOURS, DAYS = 7 * 24, 60
WIDTH, HEIGHT = 520, 110
CONFIG: charts.Spec = {
    **charts.CONFIG,
    # Else each cell and line is described in words.
    "aria": False,
    # A picture does not take the colour of the page.
    "axis": {**charts.CONFIG["axis"], "labelColor": charts.FAINT, "titleColor": charts.FAINT},
    "legend": {**charts.CONFIG["legend"], "labelColor": charts.FAINT},
}
# A title, a chart and its rows.
Drawing = tuple[str, charts.Spec, list[dict[str, Any]]]
DIGITS = re.compile(r"(\.\d)\d+")


@dataclass
class Stills:
    """The pictures of one run.

    Attributes:
        target: The DSN of the target, which has the history of tables and outboxes.
        folder: Where it is noted when each asset got its last picture.
        always: Whether all are due, because a person waits for the run.
    """

    target: str
    folder: Path
    always: bool = False
    _drawn: int = field(default=0, init=False)

    def of_table(self, name: str) -> str | None:
        """Return the lag of a target table, and the rows that moved, of the last days by hour."""
        return self._of_hours("table", {"lag_s": [name], "rows_moved": [name]})

    def of_outbox(self, names: Sequence[str]) -> str | None:
        """Return the records that waited in an entry's outboxes, `entry/node`, by hour."""
        return self._of_hours("outbox", {"pending": names})

    def of_backups(self, name: str, taken: Iterable[datetime]) -> str | None:
        """Return the calendar of a file's kept backups, `entry/file`, which needs no database."""
        return self._picture("backups", [name], lambda: [_calendar(name, sorted(taken))])

    def _of_hours(self, kind: str, wanted: Mapping[str, Sequence[str]]) -> str | None:
        names = sorted({name for some in wanted.values() for name in some})
        return self._picture(kind, names, lambda: list(_hours(self.target, wanted)))

    def _picture(
        self, kind: str, names: Sequence[str], make: Callable[[], Sequence[Drawing]]
    ) -> str | None:
        if find_spec("vl_convert") is None or self._drawn >= MOST_A_RUN:
            return None
        digest = hashlib.sha256("\n".join([kind, *names]).encode()).hexdigest()[:32]
        noted = self.folder / digest
        if not self.always and _age_s(noted) < EVERY_S:
            return None
        try:
            text = "\n\n".join(_markdown(*drawing) for drawing in make())
            if not text or len(text) > MOST_BYTES:
                return None
            self.folder.mkdir(parents=True, exist_ok=True)
            noted.touch()
        except (PlatformError, OSError, ValueError) as error:
            log.warning("No picture of %s: %s", ", ".join(names), error)
            return None
        self._drawn += 1
        return text


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


def _markdown(title: str, spec: charts.Spec, rows: list[dict[str, Any]]) -> str:
    return f"![{title}](data:image/svg+xml,{quote(_svg(spec, rows), safe=PLAIN)})"


def _hours(target: str, wanted: Mapping[str, Sequence[str]]) -> Iterator[Drawing]:
    found = read(target, wanted, Span.HOUR, HOURS)
    for series, names in wanted.items():
        past = found[series]
        of_names = {name: past.values[name] for name in names if name in past.values}
        if any(value for row in of_names.values() for value in row):
            yield _lines(series, Past(past.at, of_names))


def _lines(series: str, past: Past) -> Drawing:
    title, unit, unit_s = {
        "lag_s": ("Lag by hour", "lag, minutes", 60.0),
        "rows_moved": ("Rows moved by hour", "rows moved", 1.0),
        "pending": ("Records that wait, by hour", "records", 1.0),
    }[series]
    names = sorted(past.values, key=lambda name: -max(v or 0 for v in past.values[name]))
    rows = [
        {"at": moment * 1000, "age_h": (past.at[-1] - moment) / 3600, "rank": rank, "name": name,
         "value": round(value)}
        for rank, name in enumerate(names)
        for moment, value in zip(past.at, past.values[name], strict=True)
        if value is not None
    ]  # fmt: skip
    spec = charts.lines(unit, names, past.at[-1] + 3600, unit_s=unit_s)
    # Points, and bars of the hours, would take most of the bytes.
    one = {"type": "area", "opacity": 0.6, "line": True}
    spec["height"] = HEIGHT
    spec["mark"] = {**(one if len(names) == 1 else {"type": "line"}), "interpolate": "step-after"}
    return title, spec, rows


def _calendar(name: str, taken: Sequence[datetime]) -> Drawing:
    today = datetime.now(UTC).date()
    rows: list[dict[str, Any]] = []
    for back in reversed(range(DAYS)):
        day = today - timedelta(days=back)
        until = min(datetime.now(UTC), datetime.combine(day, time_of_day.max, UTC))
        earlier = bisect_right(taken, until)
        state = (
            charts.backup_state((until - taken[earlier - 1]).total_seconds()) if earlier else None
        )
        rows.append({"day": f"{day}", "name": name.rpartition("/")[2], "state": state})
    spec = charts.backup_calendar(1, [row["day"] for row in rows])
    del spec["encoding"]["color"]["legend"]  # which the deck's page has beside the chart
    shown = [row for row in rows if row["state"]]
    return "Age of the newest kept backup, by day", spec, shown


def _svg(spec: charts.Spec, rows: list[dict[str, Any]]) -> str:
    """Return a chart as SVG; a tenth of a pixel is exact enough."""
    import vl_convert

    whole = {
        **spec,
        "data": {"name": charts.ROWS, "values": rows},
        "width": WIDTH,
        "config": CONFIG,
    }
    return DIGITS.sub(r"\1", vl_convert.vegalite_to_svg(whole))
