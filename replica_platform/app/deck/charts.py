"""The charts of the deck, as Vega-Lite: what is drawn, from which data, in which colours.

Colours are legible on a light and on a dark page; text takes the colour of the page.
"""

from typing import Any

Spec = dict[str, Any]

GOOD, OLD, BAD, NONE = "#2a9d8f", "#e9b44c", "#d1495b", "#9aa5b1"
LINES = ["#4f7cff", "#ff9f43", "#2a9d8f", "#d1495b", "#9b5de5", "#00a6d6", "#b8860b", "#7d8597"]
# The name of the data, which the page's script expands; see `sections`.
ROWS = "rows"
LARGEST = "the 8 largest"
# The height of a row of the heat maps, and that from which names are no longer legible.
ROW, SMALL_ROW = 15, 4
# SVG follows the page's colours when they change and is sharp on paper; a canvas draws thousands
# of cells in a fraction of the time.
# A canvas keeps the colour that it was drawn in; this one has a contrast of 4.2 on both pages.
INK, FAINT = "currentColor", "#757c86"
CONFIG: Spec = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        **{"gridOpacity": 0.15, "domain": False, "ticks": False, "labelLimit": 220},
        **{"labelColor": INK, "titleColor": INK, "titleFontWeight": "normal", "titlePadding": 8},
    },
    "range": {"category": LINES},
    "legend": {"orient": "top", "title": None, "labelLimit": 240, "labelColor": INK},
}
# Names that do not fit beside one another continue below; a legend does not wrap by itself.
WRAPPED = {"legend": {"columns": {"expr": "max(1, floor(width / 260))"}}}
MIDNIGHTS = (
    "hours(datum.value) == 0 ? timeFormat(datum.value, '%a %d') : timeFormat(datum.value, '%H:%M')"
)
TIME = {
    "field": "at",
    "type": "temporal",
    "title": None,
    "axis": {"labelExpr": MIDNIGHTS, "labelOverlap": "greedy", "tickCount": 8},
}
HOUR = {"field": "at", "type": "temporal", "format": "%a %d %b %H:%M", "title": "hour"}
MEASURE = {"field": "shown", "type": "quantitative", "format": ",.3~f"}
COUNTED = ("rows", "records")
STATES = {
    "proven within a day": "#1b7f5c",
    "proven within a week": GOOD,
    "proven earlier": "#a8d5ba",
    "not proven, synced": "#8fb8de",
    "late": OLD,
    "damaged": BAD,
}
BACKUP_STATES = {"within a day": GOOD, "within 2 days": OLD, "older": BAD}


def backup_state(age_s: float | None) -> str | None:
    """Return what a day was for a file whose newest backup had that age; None without one."""
    if age_s is None:
        return None
    # A nightly backup is up to a day old, and takes its time.
    within = [(86_400 * 1.1, "within a day"), (86_400 * 2, "within 2 days")]
    return next((state for limit, state in within if age_s <= limit), "older")


def lines(
    title: str, names: list[str], end: int, *, bars: bool = False, unit_s: float = 1, days: int = 7
) -> Spec:
    """Return lines, or stacked bars, over the last day or week, of the largest or of one name.

    Args:
        title: The title of the axis, with the unit.
        names: What a person may choose from.
        end: The end of the last hour, in seconds since 1970.
        bars: Whether values of one hour are added up as bars.
        unit_s: What the measure is divided by.
        days: How many days are shown first, 1 or 7.
    """
    # Another name: a changed choice computes it again from the same rows.
    whole: Spec = {"tickMinStep": 1} if title in COUNTED else {}
    value = {"field": "shown", "type": "quantitative", "title": title, "axis": whole}
    pick = f"pick == '{LARGEST}' ? datum.rank < 8 : datum.name == pick"
    window = {
        "domainMin": {"expr": f"{1000 * end} - 86400000 * toNumber(days)"},
        "domainMax": 1000 * end,
    }
    return {
        "data": {"name": ROWS},
        "width": "container",
        "height": 150,
        "params": [
            {
                "name": "days",
                "value": str(days),
                "bind": {"input": "radio", "options": ["1", "7"], "name": "days "},
            },
            {
                "name": "pick",
                "value": LARGEST,
                "bind": {"input": "select", "options": [LARGEST, *names], "name": "show "},
            },
        ],
        "transform": [
            {"filter": f"datum.age_h < 24 * toNumber(days) && ({pick})"},
            {"calculate": f"datum.value / {unit_s}", "as": "shown"},
        ],
        "mark": {"type": "bar"}
        if bars
        else {
            "type": "line",
            "point": {"size": {"expr": "days == '1' ? 30 : 14"}},
            "strokeWidth": 1.5,
        },
        "encoding": {
            "x": TIME | {"scale": window} | ({"timeUnit": "yearmonthdatehours"} if bars else {}),
            "y": value,
            "color": {"field": "name", "type": "nominal", **WRAPPED},
            "tooltip": [{"field": "name"}, HOUR, MEASURE | {"title": title}],
        },
    }


def integrity_map(tables: int, days: list[str]) -> Spec:
    """Return the heat map of tables and days, the tables with trouble first."""
    return _heat_map(tables, days, STATES)


def backup_calendar(files: int, days: list[str]) -> Spec:
    """Return the calendar of backups: each file, each day, the age of its newest backup."""
    return _heat_map(files, days, BACKUP_STATES)


def _heat_map(rows: int, days: list[str], states: dict[str, str]) -> Spec:
    step = ROW if rows <= 100 else SMALL_ROW
    faint: Spec = {"labelOverlap": "greedy", "labelColor": FAINT}
    return {
        "data": {"name": ROWS},
        "width": "container",
        "height": max(rows, 1) * step,
        # The whole row: a list of fields for each of thousands of cells takes as long as drawing.
        "mark": {"type": "rect", "tooltip": {"content": "data"}},
        "encoding": {
            "x": {
                "field": "day",
                "type": "ordinal",
                "title": None,
                "scale": {"paddingInner": 0.08, "domain": days},
                "axis": faint
                | {"labelAngle": 0, "orient": "top", "labelExpr": "slice(datum.label, 5)"}
                | {"labelSeparation": 6},
            },
            "y": {"field": "name", "type": "nominal", "sort": None, "title": None,
                  "axis": faint, "scale": {"paddingInner": 0.08 if step == ROW else 0}},
            "color": {
                "field": "state",
                "type": "nominal",
                "scale": {"domain": list(states), "range": list(states.values())},
                "legend": None,  # the page has one that wraps, in its own colours
            },
        },
    }  # fmt: skip


def candlesticks() -> Spec:
    """Return candles with averages and bands, and below them volume, RSI and MACD."""
    day = {"field": "day", "type": "temporal", "title": None}
    rising = {
        "condition": {"test": "datum.close >= datum.open", "value": GOOD},
        "value": BAD,
    }
    price: Spec = {"type": "quantitative", "scale": {"zero": False}, "title": "US dollars"}

    def line(field: str, y: Spec = price) -> Spec:
        return {
            "mark": {"type": "line", "strokeWidth": 1.2},
            "encoding": {"y": {"field": field, **y}, "color": {"value": CANDLES[NAMES[field]]}},
        }

    prices: list[Spec] = [
        {
            "mark": {"type": "area", "color": NONE, "opacity": 0.18},
            "encoding": {
                "y": {"field": "bollinger_lower", **price},
                "y2": {"field": "bollinger_upper"},
            },
        },
        {
            "mark": "rule",
            "encoding": {
                "y": {"field": "low", **price},
                "y2": {"field": "high"},
                "color": rising,
                "tooltip": [
                    day,
                    *({"field": name} for name in ("open", "high", "low", "close", "volume")),
                ],
            },
        },
        {
            "mark": {"type": "bar", "size": 4},
            "encoding": {"y": {"field": "open", **price}, "y2": {"field": "close"},
                         "color": rising},
        },
        line("sma_20"),
        line("sma_50"),
    ]  # fmt: skip
    rsi = {"type": "quantitative", "title": "RSI 14", "scale": {"domain": [0, 100]}}
    macd = {"type": "quantitative", "title": "MACD"}
    volume: Spec = {
        "mark": {"type": "bar", "size": 4, "color": NONE},
        "encoding": {
            "y": {
                "field": "volume",
                "type": "quantitative",
                "axis": {"format": "~s", "tickCount": 2},
                "title": "volume",
            }
        },
    }
    panels: list[tuple[int, list[Spec]]] = [
        (240, prices),
        (60, [volume]),
        (60, [line("rsi_14", rsi)]),
        (60, [line("macd", macd), line("macd_signal", macd)]),
    ]  # fmt: skip
    return {
        "data": {"name": ROWS},
        "vconcat": [
            {"width": WIDE, "height": height, "layer": layer, "encoding": {"x": day}}
            for height, layer in panels
        ],
        "resolve": {"scale": {"x": "shared"}},
    }


# A concatenation cannot follow the width of the page; its script sets it when it draws.
WIDE = 1040
CANDLES = {
    "average of 20 days": LINES[1],
    "average of 50 days": LINES[4],
    "RSI": LINES[5],
    "MACD": LINES[0],
    "signal of MACD": LINES[6],
}
NAMES = dict(zip(("sma_20", "sma_50", "rsi_14", "macd", "macd_signal"), CANDLES, strict=True))
