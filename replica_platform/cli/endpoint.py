"""The HTTP endpoint of metrics, for every command that has one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from replica_platform.cli.terminal import err
from replica_platform.core.errors import TerminalError

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

Command = TypeVar("Command", bound=Callable[..., Any])
Watched = TypeVar("Watched", bound="Collector")
LOCAL = "127.0.0.1"


class CannotServeMetrics(TerminalError):
    """The extra is missing, the port is taken, or the host is not of this machine."""


def metrics_options(command: Command) -> Command:
    """Add `--metrics-port` and `--metrics-host` to a command that goes on until a signal."""
    for decorate in (
        click.option(
            "--metrics-host",
            default=LOCAL,
            show_default=True,
            help="Where --metrics-port listens; it has no password.",
        ),
        click.option(
            "--metrics-port",
            type=click.IntRange(1, 65535),
            help="Serve Prometheus metrics of this process here.",
        ),
    ):
        command = decorate(command)
    return command


def check_metrics_options(port: int | None, host: str, *, goes_on: bool = True) -> None:
    """Refuse options of the endpoint that would have no effect.

    Args:
        port: The value of `--metrics-port`.
        host: The value of `--metrics-host`.
        goes_on: Whether the command was called so that it goes on.

    Raises:
        UsageError: The command ends by itself, or there is a host without a port.
    """
    if port and not goes_on:
        raise click.UsageError("--metrics-port serves as long as --watch runs; add --watch.")
    if host != LOCAL and not port:
        raise click.UsageError("--metrics-host says where --metrics-port listens; give a port.")


@contextmanager
def needs_metrics() -> Iterator[None]:
    """Name the extra where an import in the block fails without it.

    Raises:
        CannotServeMetrics: prometheus-client is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "prometheus_client":
            raise
        raise CannotServeMetrics(
            "prometheus_client is missing; install replica-platform[metrics]."
        ) from None


@contextmanager
def serving_watched(
    make: Callable[[], Watched], host: str, port: int | None
) -> Iterator[Watched | None]:
    """Serve the counters of this process as long as the block runs.

    Args:
        make: Imports and makes the collector; called only with a port.
        host: The address to listen on.
        port: The port; without one nothing is served.

    Yields:
        The collector, to be told of each round; None without a port.

    Raises:
        CannotServeMetrics: The extra is missing, or the address cannot be listened on.
    """
    if port is None:
        yield None
        return
    with needs_metrics():
        collector = make()
    with serving(collector, host, port):
        yield collector


@contextmanager
def serving(collector: "Collector", host: str, port: int) -> Iterator[None]:
    """Answer requests with the figures of a collector as long as the block runs.

    Raises:
        CannotServeMetrics: The port is taken, or the host is not of this machine.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise CannotServeMetrics(
            f"{host}:{port} cannot be listened on ({error.strerror}); give another."
        ) from error
    err.print(f"Metrics are at http://{host}:{port}/metrics (Ctrl-C ends it).")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
