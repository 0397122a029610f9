"""The deck over HTTP on this machine, made anew for a request when it is no longer fresh.

A reload shows what is repaired by now; where a deck takes long to make, it is made less often.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from replica_platform.core.errors import PlatformError

log = logging.getLogger(__name__)

# How long a deck is fresh: by the time that it took to make, within these limits.
FRESH_FOR, FRESH_S, FRESHEST_S = 10.0, 60.0, 3.0
LOCAL = {"127.0.0.1", "localhost", "[::1]"}


class _Deck:
    """The page that was made last; one request at a time makes a new one."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._page, self._until = b"", float("-inf")

    def page(self) -> bytes:
        with self._lock:
            began = time.monotonic()
            if began >= self._until:
                self._page = self._make()
                made = time.monotonic()
                self._until = made + max(FRESHEST_S, min(FRESH_S, FRESH_FOR * (made - began)))
            return self._page


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, deck: _Deck, *given: object) -> None:
        self._deck = deck
        super().__init__(*given)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer with the deck, at the root only."""
        # A page of another site that resolves to this machine may not read it.
        if self.headers.get("Host", "").rpartition(":")[0] not in LOCAL or self.path != "/":
            self._answer(404, "text/plain", b"The deck is at http://127.0.0.1/ of this port.\n")
            return
        try:
            page = self._deck.page()
        except PlatformError as error:
            self._answer(503, "text/plain; charset=utf-8", f"{error}\n".encode())
            return
        self._answer(200, "text/html; charset=utf-8", page)

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


def serve_deck(
    make: Callable[[], bytes], port: int, stop: threading.Event, *, host: str = "127.0.0.1"
) -> None:
    """Serve the deck on this machine until `stop` is set.

    Args:
        make: Returns the page.
        port: The port.
        stop: Ends it.
        host: The address to listen on. Whatever it is, a request has to name this machine as its
            host, as one through a port that a container publishes on 127.0.0.1 does.

    Raises:
        OSError: The port is taken.
    """
    with ThreadingHTTPServer((host, port), partial(_Handler, _Deck(make))) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        stop.wait()
        server.shutdown()
        thread.join()
