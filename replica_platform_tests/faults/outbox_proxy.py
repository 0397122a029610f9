"""A TCP proxy in front of the embedded Postgres, or of another server, that fails on demand.

It refuses, resets, delays, holds back, goes silent, or forwards a COMMIT and drops its reply.
"""

import contextlib
import select
import socket
import struct
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """One listening port; `mode` decides what happens to the traffic.

    Args:
        server: The folder of a Postgres' socket, or host and port of a server.

    Attributes:
        mode: `ok`, `refuse` (accept and reset at once), `delay` (`delay_s` each way), `silent`
            (accept everything, answer nothing), `hold` (the same, but nothing is lost: it arrives
            when the mode is `ok` again, as after a partition), or `drop_commit` (forward one
            COMMIT and reset instead of replying, then `ok`).
        delay_s: The delay of `delay`, in seconds.
        commits_dropped: How many replies `drop_commit` dropped.
        port: The listening port.
    """

    def __init__(self, server: Path | tuple[str, int]) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.mode = "ok"
        self.delay_s = 0.05
        self.commits_dropped = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def dsn(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(database)}?sslmode=disable"

    def reset(self) -> None:
        """Cut every connection with a RST."""
        with self._lock:
            cut, self._open = self._open, set()
        for end in cut:
            _close_with_reset(end)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.mode == "refuse":
                _close_with_reset(client)
                continue
            try:
                server = self._connected()
            except OSError:
                _close_with_reset(client)
                continue
            with self._lock:
                self._open |= {client, server}
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _connected(self) -> socket.socket:
        if isinstance(self._server, tuple):
            return socket.create_connection(self._server)
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self._server / ".s.PGSQL.5432"))
        except OSError:
            server.close()
            raise
        return server

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        committing = False
        with contextlib.suppress(OSError, ValueError):
            while True:
                ready = select.select([client, server], [], [])[0]
                while self.mode == "hold":
                    time.sleep(0.05)
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        raise OSError("closed")
                    if self.mode == "delay":
                        time.sleep(self.delay_s)
                    if self.mode == "silent":
                        continue
                    if self.mode == "drop_commit" and end is client:
                        committing = b"COMMIT" in data
                    if committing and end is server:
                        self.mode = "ok"
                        self.commits_dropped += 1
                        raise OSError("the reply is lost")
                    other[end].sendall(data)
        with self._lock:
            self._open -= {client, server}
        _close_with_reset(client)
        server.close()


def _close_with_reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        if end.family == socket.AF_INET:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        else:
            end.shutdown(socket.SHUT_RDWR)
    end.close()
