"""A line of limited speed between this machine and itself: a forwarder of TCP connections."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

PIECE_BYTES = 1 << 14
LATE_S = 0.05


@contextmanager
def slow_line(port: int, bytes_per_s: float) -> Iterator[int]:
    """Forward connections to a port of this machine; yield the port to connect to.

    Args:
        port: Where the server listens.
        bytes_per_s: The most that one connection carries in one direction.
    """
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        threading.Thread(
            target=_accept, args=(listening, port, bytes_per_s), daemon=True, name="line"
        ).start()
        yield listening.getsockname()[1]


def _accept(listening: socket.socket, port: int, bytes_per_s: float) -> None:
    with suppress(OSError):  # the block ended
        while True:
            client, _ = listening.accept()
            server = socket.create_connection(("127.0.0.1", port))
            for one, other in ((client, server), (server, client)):
                threading.Thread(
                    target=_forward, args=(one, other, bytes_per_s), daemon=True, name="line"
                ).start()


def _forward(one: socket.socket, other: socket.socket, bytes_per_s: float) -> None:
    free_at = time.monotonic()
    with suppress(OSError):  # cut by either end
        while piece := one.recv(PIECE_BYTES):
            # A sleep that lasted too long is made up for; an idle line saves nothing up.
            free_at = max(free_at, time.monotonic() - LATE_S) + len(piece) / bytes_per_s
            time.sleep(max(0.0, free_at - time.monotonic()))
            other.sendall(piece)
    with suppress(OSError):
        other.shutdown(socket.SHUT_WR)
