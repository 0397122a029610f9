"""The script that draws: Vega-Lite with its parts, in one piece, as vl-convert has it.

To put it together takes seconds, and it changes only with vl-convert, so that it is kept in the
data folder.
"""

from importlib.metadata import version
from pathlib import Path

from replica_platform.core.errors import TerminalError
from replica_platform.core.files import write_atomically

KEPT = "vega-{version}.js"


class DeckNotInstalled(TerminalError):
    """The deck's library is missing: pip install 'replica-platform[deck]'."""


def vega_script(folder: Path) -> str:
    """Return a script that defines `vegaEmbed`.

    Args:
        folder: Where it is kept.

    Raises:
        DeckNotInstalled: vl-convert is missing.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise DeckNotInstalled(
            "The deck needs vl-convert: pip install 'replica-platform[deck]'."
        ) from error
    kept = folder / KEPT.format(version=version("vl-convert-python"))
    if kept.is_file():
        return kept.read_text()
    # A script element would end at these characters, wherever they stand.
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    script = script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    folder.mkdir(parents=True, exist_ok=True)
    for older in folder.glob(KEPT.format(version="*")):
        older.unlink(missing_ok=True)
    write_atomically(kept, script.encode())
    return script
