"""The command that gives the platform's state to Prometheus."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from replica_platform.cli.common import PATH, on_signal
from replica_platform.cli.terminal import complain, err

if TYPE_CHECKING:
    from replica_platform.app.metrics import PlatformCollector


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
    try:
        from replica_platform.app.metrics import PlatformCollector, metrics_text
    except ModuleNotFoundError as error:
        return complain(f"{error.name} is missing; install replica-platform[metrics].")
    from replica_platform.core.files import write_atomically

    with existing_databases(settings):
        if port:
            return _serve(PlatformCollector(settings), host, port)
        text = metrics_text(settings)
    if textfile:
        write_atomically(textfile, text)
    else:
        click.echo(text.decode(), nl=False)
    return 0


def _serve(collector: "PlatformCollector", host: str, port: int) -> int:
    """Answer each request with new figures until a signal."""
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    stop = on_signal()
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        return complain(f"{host}:{port} cannot be listened on ({error.strerror}); give another.")
    err.print(f"Metrics are at http://{host}:{port}/metrics (Ctrl-C ends it).")
    stop.wait()
    server.shutdown()
    server.server_close()
    thread.join()
    return 0
