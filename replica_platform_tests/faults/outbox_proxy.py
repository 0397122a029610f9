"""A TCP proxy in front of the unix socket of the embedded Postgres that fails on demand.

It refuses, resets, delays, goes silent, or forwards a COMMIT and drops its reply.
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

    Attributes:
        mode: `ok`, `refuse` (accept and reset at once), `delay` (`delay_s` each way), `silent`
            (accept everything, answer nothing), or `drop_commit` (forward one COMMIT and reset
            instead of replying, then `ok`).
        delay_s: The delay of `delay`, in seconds.
        commits_dropped: How many replies `drop_commit` dropped.
        port: The listening port.
    """

    def __init__(self, socket_dir: Path) -> None:
        self._server = str(socket_dir / ".s.PGSQL.5432")
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
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._server)
            except OSError:
                _close_with_reset(client)
                server.close()
                continue
            with self._lock:
                self._open |= {client, server}
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        committing = False
        with contextlib.suppress(OSError, ValueError):
            while True:
                for end in select.select([client, server], [], [])[0]:
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
