"""The command that gives the platform's state to Prometheus."""

from pathlib import Path

import click

from replica_platform.cli.common import PATH, on_signal
from replica_platform.cli.endpoint import needs_metrics, serving
from replica_platform.cli.terminal import complain


@click.command()
@click.option("--textfile", type=PATH, help="Write this file for node_exporter, in one step.")
@click.option("--port", type=click.IntRange(1, 65535), help="Serve them here until SIGTERM.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where --port listens.")
def metrics(textfile: Path | None, port: int | None, host: str) -> int:
    """Print the platform's state as Prometheus metrics.

    With --port they are taken anew at each request; with --textfile once, for a cron job.
    """
    if textfile and port:
        raise click.UsageError("--textfile writes once and --port serves; give one of them.")
    if textfile and not textfile.absolute().parent.is_dir():
        return complain(f"There is no folder {textfile.absolute().parent}; make it first.")
    from replica_platform.app.launch import existing_databases
    from replica_platform.app.settings import Settings

    settings = Settings()
    with needs_metrics():
        from replica_platform.app.metrics import PlatformCollector, metrics_text
    from replica_platform.core.files import write_atomically

    with existing_databases(settings):
        if port:
            stop = on_signal()
            with serving(PlatformCollector(settings), host, port):
                stop.wait()
            return 0
        text = metrics_text(settings)
    if textfile:
        write_atomically(textfile, text)
    else:
        click.echo(text.decode(), nl=False)
    return 0
