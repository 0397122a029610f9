"""The command that shows the platform on one page."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from replica_platform.cli.common import PATH, on_signal
from replica_platform.cli.terminal import complain, err, out, plain
from replica_platform.core.reports import format_bytes

NAME = "deck.html"


@click.command()
@click.option("--file", "file", type=PATH, help="Write this file; DATA_DIR/deck.html otherwise.")
@click.option("--symbol", help="The symbol of the chart; the first of the watchlist otherwise.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Serve it on this machine until SIGTERM."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Where --port listens; 0.0.0.0 in a container whose port is published on 127.0.0.1.",
)
def deck(file: Path | None, symbol: str | None, port: int | None, host: str) -> int:
    """Draw the platform on one HTML page.

    Lag, rows moved, integrity, generations, outboxes, backups, a chart, and what runs next. The
    page asks no other host for anything, and can be mailed or printed.
    """
    if file and port:
        raise click.UsageError("--file writes once and --port serves; give one of them.")
    if file and not file.absolute().parent.is_dir():
        return complain(f"There is no folder {file.absolute().parent}; make it first.")
    from replica_platform.app.launch import existing_databases
    from replica_platform.app.settings import Settings

    settings = Settings()
    if not settings.data_dir.is_dir():
        return complain(f"There is no folder {settings.data_dir}; `replica run` makes it.")
    from replica_platform.app.configured import configured
    from replica_platform.app.deck import deck_page, write_deck
    from replica_platform.app.observation import record_state
    from replica_platform.market.chart import chart_columns

    def make() -> bytes:
        found = configured(sample=settings.sample, host=settings.host)
        record_state(settings, found)
        return deck_page(settings, found, read_bars=partial(chart_columns, symbol=symbol))

    with existing_databases(settings):
        if port:
            return _serve(make, host, port)
        return _write(make(), file or settings.data_dir / NAME, write_deck)


def _write(page: bytes, path: Path, write: Callable[[Path, bytes], None]) -> int:
    write(path, page)
    out.print(f"{plain(str(path.absolute()))} is written ({format_bytes(len(page))}).")
    return 0


def _serve(make: Callable[[], bytes], host: str, port: int) -> int:
    from replica_platform.app.deck import serve_deck

    stop = on_signal()
    err.print(f"The deck is at http://127.0.0.1:{port} (Ctrl-C ends it).")
    try:
        serve_deck(make, port, stop, host=host)
    except OSError as error:
        return complain(f"{host}:{port} cannot be listened on ({error.strerror}); give another.")
    return 0
