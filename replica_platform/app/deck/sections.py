"""The sections of the deck: for each its heading, its text, and the data of its charts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from types import MappingProxyType
from typing import Any

from replica_platform.app.deck import charts
from replica_platform.app.deck.contents import Contents
from replica_platform.history import Past

DAY_S = 86_400
NOTHING_YET = "Nothing is recorded yet; `replica dev` records it four times an hour."


@dataclass(frozen=True)
class Chart:
    """A chart and its data.

    Attributes:
        place: The id of its element.
        renderer: `svg` or `canvas`.
        spec: The chart as Vega-Lite, which takes its data from the name `rows`.
        data: The data in the form that the page's script expands into rows.
    """

    place: str
    renderer: str
    spec: charts.Spec
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        html: Its content.
        charts: The charts that are drawn in it.
    """

    html: str
    charts: Sequence[Chart] = field(default=())


def sections(contents: Contents) -> Iterator[Section]:
    """Yield the sections of the page from top to bottom."""
    hours, days = contents.hours, contents.days
    yield _health(contents)
    yield _lines("Lag of the tables", "Since the last sync, the longest in each hour.",
                 "lag", hours.get("lag_s"))  # fmt: skip
    yield _lines("Rows moved", "Inserted, updated and deleted in the target, by hour.",
                 "moved", hours.get("rows_moved"), "rows", bars=True)  # fmt: skip
    yield _integrity(days)
    yield _table("Generations", "What each replica keeps, and which processes read it.",
                 ("replica", "generation", "", "readers", "age of the data", "size"),
                 contents.generations)  # fmt: skip
    yield _lines("Age of what readers see", "The oldest in each hour.",
                 "data_age", hours.get("data_age_s"))  # fmt: skip
    yield _lines("Outbox waterline", "Records that wait, the most in each hour.",
                 "pending", hours.get("pending"), "records")  # fmt: skip
    yield _lines("Oldest waiting record", "Its age, the highest in each hour.",
                 "oldest", hours.get("oldest_s"))  # fmt: skip
    yield _lines("Dead records", "Records that the target refuses.",
                 "dead", hours.get("dead"), "records")  # fmt: skip
    yield _backups(days.get("backup_age_s"))
    if contents.candles is not None:
        yield _candles(str(contents.symbol), contents.candles)
    yield _table("What runs next", "By the schedules of the entries, while `replica dev` runs.",
                 ("when", "", "what"), contents.next_runs)  # fmt: skip


def _health(contents: Contents) -> Section:
    cards = "".join(
        f'<li class="{_light(one.ok, one.idle)}"><b>{escape(one.pillar)}</b> '
        f"{_code(one.sentence)}</li>"
        for one in contents.health
    )
    return Section(f"<section><h2>Health</h2><ul class=health>{cards}</ul></section>")


def _light(ok: bool, idle: bool) -> str:
    return "idle" if idle else "well" if ok else "red"


def _lines(
    heading: str, text: str, place: str, past: Past | None, counted: str = "", *,
    bars: bool = False,
) -> Section:  # fmt: skip
    """Return the section of a series: of what is counted, else of ages in seconds."""
    if past is None or not past.values:
        return _section(heading, text, NOTHING_YET)
    values = {
        name: [None if value is None else round(value) for value in row]
        for name, row in past.values.items()
    }
    largest = {name: max(value or 0 for value in row) for name, row in values.items()}
    if not any(largest.values()):
        return _section(heading, text, "It was 0 all the time.")
    names = sorted(values, key=lambda name: (-largest[name], name))
    title, unit_s = (counted, 1) if counted else _unit(max(largest.values()))
    data = {"form": "hours", "at": past.at, "names": names, "rows": [values[n] for n in names]}
    before = past.at[-1] - DAY_S
    early = (n for n, at in enumerate(past.at) if at <= before)
    week = any(row[n] is not None for n in early for row in values.values())
    spec = charts.lines(
        title, names, past.at[-1] + 3600, bars=bars, unit_s=unit_s, days=7 if week else 1
    )
    return _section(heading, text, charts=[Chart(place, "svg", spec, data)])


def _unit(largest_s: int) -> tuple[str, int]:
    """Return the unit of an axis for ages up to this one, with its length in seconds."""
    units = [("seconds", 1, 120), ("minutes", 60, 2 * 3600), ("hours", 3600, 3 * DAY_S)]
    return next(
        ((name, length) for name, length, limit in units if largest_s <= limit), ("days", DAY_S)
    )


def _integrity(days: Mapping[str, Past]) -> Section:
    heading = "Integrity"
    text = "Each table, each day: was its whole content proven equal, or did rows differ?"
    tables = {name for past in days.values() for name in past.values} - set(
        days["backup_age_s"].values if "backup_age_s" in days else ()
    )
    if not tables:
        return _section(heading, text, NOTHING_YET)
    at = days["lag_s"].at
    empty = [None] * len(at)

    def of(series: str, name: str) -> Sequence[float | None]:
        return days[series].values.get(name, empty)

    states = list(charts.STATES)
    rows = {
        name: [
            _state(*values)
            for values in zip(
                of("integrity", name), of("differing", name), of("proven_age_s", name),
                of("lag_s", name), strict=True,
            )
        ]
        for name in tables
    }  # fmt: skip
    worst = {
        name: max((states.index(state) for state in row[-7:] if state), default=-1)
        for name, row in rows.items()
    }
    names = sorted(tables, key=lambda name: (-worst[name], name))
    proven = [[_whole(value) for value in of("proven_age_s", name)] for name in names]
    details = {
        series: [
            [place, day, value]
            for place, name in enumerate(names)
            for day, value in enumerate(of(series, name))
            if value is not None and (series != "integrity" or value < 1)
        ]
        for series in ("integrity", "differing")
    }
    data = _cells(at, names, rows, charts.STATES) | {
        "about": "content proven",
        "ages": proven,
        "details": details,
    }
    spec = charts.integrity_map(len(names), data["days"])
    drawn = [Chart("integrity", "canvas", spec, data)]
    return _section(heading, text, charts=drawn, colours=charts.STATES)


def _state(
    integrity: float | None, differing: float | None, proven_s: float | None, lag_s: float | None
) -> str | None:
    """Return what a day was for a table; None where nothing was recorded."""
    if differing or (integrity is not None and integrity < 1):
        return "damaged"
    if lag_s is not None and lag_s > DAY_S:
        return "late"
    if proven_s is not None:
        if proven_s <= DAY_S:
            return "proven within a day"
        return "proven within a week" if proven_s <= 7 * DAY_S else "proven earlier"
    return None if integrity is None and lag_s is None else "not proven, synced"


def _backups(past: Past | None) -> Section:
    heading = "Backups"
    text = "Each file, each day: how old its newest verified backup was."
    if past is None or not past.values:
        return _section(heading, text, NOTHING_YET)
    names = sorted(past.values)
    rows = {name: [charts.backup_state(age) for age in past.values[name]] for name in names}
    ages = [[_whole(age) for age in past.values[name]] for name in names]
    data = _cells(past.at, names, rows, charts.BACKUP_STATES) | {
        "about": "newest verified",
        "ages": ages,
        "details": {},
    }
    spec = charts.backup_calendar(len(names), data["days"])
    drawn = [Chart("backups", "canvas", spec, data)]
    return _section(heading, text, charts=drawn, colours=charts.BACKUP_STATES)


def _cells(
    at: Sequence[int],
    names: Sequence[str],
    rows: Mapping[str, Sequence[str | None]],
    states: Mapping[str, str],
) -> dict[str, Any]:
    """Return a row of text for each name, with a letter for each day: thousands of cells."""
    letters = {state: str(number) for number, state in enumerate(states)}
    return {
        "form": "days",
        "days": [f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}" for moment in at],
        "names": names,
        "states": list(states),
        "rows": ["".join(letters[state] if state else "." for state in rows[n]) for n in names],
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _candles(symbol: str, columns: Mapping[str, Sequence[Any]]) -> Section:
    first, last = columns["day"][0], columns["day"][-1]
    text = f"{first} to {last}: candles with averages and Bollinger bands; volume, RSI, MACD."
    data = {"form": "columns", "columns": columns}
    drawn = [Chart("candles", "svg", charts.candlesticks(), data)]
    return _section(f"{symbol}, from the replica", text, charts=drawn, colours=charts.CANDLES)


def _table(
    heading: str, text: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> Section:
    if not rows:
        return _section(heading, text, "There is none.")
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    table = f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"
    return Section(f"<section><h2>{escape(heading)}</h2><p>{_code(text)}</p>{table}</section>")


def _section(
    heading: str, text: str, nothing: str = "", charts: Sequence[Chart] = (),
    colours: Mapping[str, str] = MappingProxyType({}),
) -> Section:  # fmt: skip
    """Return a section with its charts, or with what it says where there is nothing to draw.

    Args:
        heading: Its heading.
        text: What its charts show.
        nothing: What it says where there is none.
        charts: Its charts.
        colours: The colours of its legend by their meaning.
    """
    places = "".join(f'<div class=chart id="{chart.place}"></div>' for chart in charts)
    empty = f"<p class=nothing>{_code(nothing)}</p>" if nothing else ""
    items = "".join(
        f'<li><i style="background: {colour}"></i>{escape(meaning)}</li>'
        for meaning, colour in colours.items()
    )
    legend = f"<ul class=legend>{items}</ul>" if colours else ""
    head = f"<h2>{escape(heading)}</h2><p>{_code(text)}</p>"
    return Section(f"<section>{head}{empty}{legend}{places}</section>", charts)


def _code(text: str) -> str:
    """Return text as HTML; what is between backticks is code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts))
