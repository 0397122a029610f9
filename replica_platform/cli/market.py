"""Commands of the market: read days again, send quotes, draw a chart."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from replica_platform.cli.common import FOUND, PATH, as_json_option, on_signal
from replica_platform.cli.endpoint import check_metrics_options, metrics_options, serving_watched
from replica_platform.cli.terminal import bar, err, out, plain, print_json, print_table

if TYPE_CHECKING:
    from replica_platform.cli.quote_metrics import QuoteMetrics
    from replica_platform.market.quotes import Cycle, Totals
    from replica_platform.market.tables import BarsLoaded, Written

# Below the data folder, as the sample has them (`defs/sample/`).
MASTER, STORE = Path("master/stock_data.duckdb"), Path("replica")
DAY = click.DateTime(["%Y-%m-%d"])


@click.command()
@click.option("--from", "start", type=DAY, required=True, help="The first day, YYYY-MM-DD.")
@click.option("--to", "end", type=DAY, help="The last day; the last closed session otherwise.")
@click.option("--master", type=PATH, help="The DuckDB file; the sample's otherwise.")
@as_json_option
def backfill(start: datetime, end: datetime | None, master: Path | None, as_json: bool) -> int:
    """Read a range of days again from the source of the bars.

    What changed is written, with its indicators and the watchlist. A load that is interrupted
    goes on where it was. The exit code is 1 when a symbol could not be read.
    """
    from replica_platform.app.settings import Settings
    from replica_platform.market.sources import open_source
    from replica_platform.market.tables import (
        load_bars,
        update_indicators,
        write_symbols,
        write_watchlist,
    )
    from replica_platform.market.watch import load_rules
    from replica_platform.replica import Master

    if end is not None and end < start:
        raise click.UsageError("--to is before --from.")
    settings = Settings()
    rules = load_rules(settings.watch_rules)
    source = open_source(str(settings.bars) if settings.bars else None, settings.symbols)
    writer = Master(master or settings.data_dir / MASTER)
    listed = write_symbols(writer, source)
    with bar("bars") as progress:
        loaded = load_bars(
            writer,
            source,
            start=start.date(),
            end=end.date() if end else None,
            progress=progress,
        )
    with bar("indicators") as progress:
        computed = update_indicators(writer, progress=progress)
    watched = write_watchlist(writer, rules)
    return _print_backfill([listed, loaded, computed, watched], loaded, as_json)


@click.command()
@click.option("--store", type=FOUND, required=True, help="The folder of generations.")
@click.option(
    "--brokers", required=True, help="Kafka's bootstrap servers: host:port, comma-separated."
)
@click.option("--topic", required=True, help="The topic to send to.")
@click.option("--sources", type=FOUND, help="A YAML file of quote sources; a replay otherwise.")
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Days per second of the replay.",
)
@click.option(
    "--symbol",
    "defaults",
    multiple=True,
    help="A symbol to quote while there is no watchlist; several times for several.",
)
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="The time from one round to the next, in seconds.",
)
@click.option(
    "--refresh",
    "refresh_cycles",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Read the watchlist again after so many rounds.",
)
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="How long to wait at the end for the brokers' reports, in seconds.",
)
@click.option("--cycles", type=int, help="The number of rounds; without it, until SIGTERM.")
@metrics_options
@as_json_option
def quotes(
    store: Path,
    brokers: str,
    topic: str,
    sources: Path | None,
    speed: float,
    defaults: tuple[str, ...],
    every_s: float,
    refresh_cycles: int,
    grace_s: float,
    cycles: int | None,
    metrics_port: int | None,
    metrics_host: str,
    as_json: bool,
) -> int:
    """Send quotes of the watchlist to Kafka.

    It goes on without a readable replica, with a failing source and with a silent broker. The exit
    code is 0 when messages were sent and all of them are acknowledged.
    """
    check_metrics_options(metrics_port, metrics_host)
    from replica_platform.market.quotes import Delivery, load_sources, produce_quotes
    from replica_platform.replica import ReplicaReader

    stop = on_signal()
    with (
        ReplicaReader(store) as reader,
        serving_watched(_quote_metrics, metrics_host, metrics_port) as metrics,
    ):
        delivery = Delivery(brokers, topic)

        def show(cycle: "Cycle") -> None:
            if metrics:
                metrics.add_cycle(cycle, delivery)
            if not as_json:
                _print_cycle(cycle)

        totals = produce_quotes(
            reader,
            load_sources(sources, reader, speed=speed),
            delivery,
            every_s=every_s,
            cycles=cycles,
            refresh_cycles=refresh_cycles,
            defaults=defaults,
            grace_s=grace_s,
            stop=stop,
            report=show,
        )
    return _print_totals(totals, as_json)


@click.command()
@click.argument("symbol")
@click.option("--store", type=FOUND, help="The folder of generations; the sample's otherwise.")
@click.option("--days", type=click.IntRange(min=1), default=180, show_default=True,
              help="How many calendar days to draw.")  # fmt: skip
@click.option("--png", type=PATH, help="Write a PNG to this file instead of the terminal.")
def chart(symbol: str, store: Path | None, days: int, png: Path | None) -> int:
    """Draw candlesticks and indicators of SYMBOL.

    Without --png they are drawn in the terminal.
    """
    from replica_platform.app.settings import Settings
    from replica_platform.market.chart import chart_png, chart_text, read_chart
    from replica_platform.replica import ReplicaReader

    with ReplicaReader(store or Settings().data_dir / STORE) as reader:
        frame = read_chart(reader, symbol, days)
    if png is not None:
        png.write_bytes(chart_png(frame, symbol))
        out.print(f"{plain(str(png))}: {symbol}, {len(frame)} bars up to {frame.index[-1].date()}")
        return 0
    drawn = chart_text(frame, symbol, out.width, colour=out.is_terminal)
    click.echo(drawn)
    return 0


def _print_backfill(tables: "list[Written]", loaded: "BarsLoaded", as_json: bool) -> int:
    if as_json:
        print_json({table.table: table for table in tables})
        return int(bool(loaded.failed))
    print_table(
        ("table", "rows", "new", "corrected", "from"),
        [
            (one.table, one.rows, one.inserted, one.updated, str(one.first_day or "–"))
            for one in tables
        ],
    )
    for symbol, reason in loaded.failed.items():
        err.print(f"[bold red]{plain(symbol)}[/] was not read: {plain(reason)}")
    if any(table.changed for table in tables):
        out.print(
            "Readers see it with the next publication: within a minute while `replica dev` runs, "
            "or by `replica publish`."
        )
    return int(bool(loaded.failed))


def _quote_metrics() -> "QuoteMetrics":
    from replica_platform.cli.quote_metrics import QuoteMetrics

    return QuoteMetrics()


def _print_cycle(cycle: "Cycle") -> None:
    by_source = ", ".join(f"{name} {count}" for name, count in cycle.sources.items()) or "none"
    errors = "".join(f"; {error}" for error in cycle.errors[:2])
    out.print(
        plain(
            f"{cycle.quoted}/{cycle.watched} quotes ({by_source}), "
            f"{cycle.acknowledged} acknowledged, {cycle.in_flight} in flight, "
            f"{cycle.origin}, {cycle.rung}, generation {cycle.generation}{errors}"
        )
    )


def _print_totals(totals: "Totals", as_json: bool) -> int:
    if as_json:
        print_json(totals)
    else:
        out.print(
            f"{totals.sent} sent in {totals.cycles} rounds: {totals.acknowledged} acknowledged, "
            f"{totals.failed} refused, {totals.unknown} without a report, {totals.skipped} skipped."
        )
    return int(not totals.ok)
