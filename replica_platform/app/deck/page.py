"""The deck as one HTML page: text and tables by the browser, charts by Vega-Lite, data as JSON.

The page's own policy forbids every request, so that it shows the same from a disk, in a mail and
behind a web server.
"""

import json
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from replica_platform.app.configured import Configured, configured
from replica_platform.app.deck.charts import CONFIG
from replica_platform.app.deck.contents import Contents, ReadBars, look
from replica_platform.app.deck.sections import sections
from replica_platform.app.deck.vega import vega_script
from replica_platform.app.settings import Settings
from replica_platform.core.files import write_atomically


def deck_page(
    settings: Settings, found: Configured | None = None, read_bars: ReadBars = lambda _: None
) -> bytes:
    """Return the deck of now.

    Args:
        settings: The settings of the platform; its databases should run.
        found: What is configured; the `defs.yaml` files of this package if left out.
        read_bars: Returns a symbol and its bars from a replica, None where it has none.

    Raises:
        DeckNotInstalled: vl-convert is missing.
    """
    script = vega_script(settings.data_dir / "deck")
    found = found or configured(sample=settings.sample, host=settings.host)
    return render(look(settings, found, read_bars), script).encode()


def write_deck(path: Path, page: bytes) -> None:
    """Write a deck to a file, in one step; only its owner and group may read it."""
    write_atomically(path, page, 0o640)


def render(contents: Contents, script: str) -> str:
    """Return the page.

    Args:
        contents: What it shows.
        script: The script that defines `vegaEmbed`.
    """
    shown = list(sections(contents))
    drawn = [chart for section in shown for chart in section.charts]
    made = datetime.fromtimestamp(contents.at, UTC)
    template = files(__package__).joinpath("page.html").read_text()
    values = {
        "made": f"{made:%Y-%m-%d %H:%M} UTC",
        "missing": "".join(f"<p class=missing>{escape(one)}</p>" for one in contents.missing),
        "body": "\n".join(section.html for section in shown),
        "data": _json({"config": CONFIG, "charts": [chart.__dict__ for chart in drawn]}),
        "vega": script,
    }
    for name, value in values.items():
        template = template.replace(f"<!--{name}-->", value, 1)
    return template


def _json(value: Any) -> str:
    """Return JSON that is safe inside a script element, whatever names it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
