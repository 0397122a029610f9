"""A wire that misbehaves: a TCP proxy in front of the unix socket of the embedded Postgres.

It refuses, resets, delays, goes silent, or lets a COMMIT through and swallows its reply.
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
    """One listening port; `mode` says what happens to what passes.

    `ok`, `refuse` (accept and reset at once), `delay` (`delay_s` each way), `silent` (take
    everything, answer nothing), `drop_commit` (once: forward a COMMIT, then reset instead of its
    reply; then `ok` again). `commits_dropped` counts those.
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
            _slam(end)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.mode == "refuse":
                _slam(client)
                continue
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._server)
            except OSError:
                _slam(client)
                server.close()
                continue
            with self._lock:
                self._open |= {client, server}
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
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
        _slam(client)
        server.close()


def _slam(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        if end.family == socket.AF_INET:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        else:
            end.shutdown(socket.SHUT_RDWR)
    end.close()
