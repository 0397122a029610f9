"""Requests that hang, and acknowledgements that are lost on the way."""

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from replica_platform.blocks import objects
from replica_platform.replica import BlockStore, Publication
from replica_platform.replica.errors import PointerMoved

STALLED_S = 90.0


class Bucket(http.server.BaseHTTPRequestHandler):
    """The few requests of S3 that a push makes, in memory; `trouble` decides what goes wrong."""

    protocol_version = "HTTP/1.1"
    content: ClassVar[dict[str, bytes]] = {}
    trouble: ClassVar[Callable[[str, str], str | None]] = lambda method, path: None
    released: ClassVar[threading.Event] = threading.Event()

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0]
        kind = Bucket.trouble("PUT", path)
        if kind == "hangs":
            Bucket.released.wait(STALLED_S)
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        exists = path in Bucket.content
        if not (exists and self.headers.get("If-None-Match") == "*"):
            Bucket.content[path] = body
        if kind == "unacknowledged":
            self._answer(503)
        else:
            self._answer(412 if exists and self.headers.get("If-None-Match") == "*" else 200)

    def do_HEAD(self) -> None:
        self._answer(200 if self.path in Bucket.content else 404, Bucket.content.get(self.path))

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if "list-type" not in query:
            self._answer(200 if path in Bucket.content else 404, Bucket.content.get(path))
            return
        prefix = query.split("prefix=")[1].split("&")[0].replace("%2F", "/")
        found = "".join(
            f"<Contents><Key>{name.removeprefix('/b/')}</Key><Size>{len(content)}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>e</ETag></Contents>"
            for name, content in sorted(Bucket.content.items())
            if name.startswith(f"/b/{prefix}")
        )
        self._answer(
            200,
            f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode(),
        )

    def _answer(self, status: int, body: bytes | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body or b"")))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if body and self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bucket() -> Iterator[Callable[..., BlockStore]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Bucket.content = {}
    Bucket.trouble = lambda method, path: None
    Bucket.released = threading.Event()
    yield lambda: BlockStore(
        "s3://b/market",
        endpoint=f"http://127.0.0.1:{server.server_address[1]}",
        access_key_id="key",
        secret_access_key="secret",
        region="us-east-1",
        client_options={"allow_http": True},
    )
    Bucket.released.set()
    server.shutdown()
    server.server_close()


def test_one_request_that_hangs_does_not_fail_the_push(
    publish_next: Callable[..., Publication],
    bucket: Callable[..., BlockStore],
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objects, "REQUEST_TIMEOUT", objects.timedelta(seconds=1), raising=False)
    publish_next()
    hung: list[str] = []

    def trouble(method: str, path: str) -> str | None:
        if method == "PUT" and "blocks/" in path and not hung:
            hung.append(path)
            return "hangs"
        return None

    Bucket.trouble = trouble
    block_store = bucket()
    pushed = block_store.push(store)
    assert len(hung) == 1
    assert pushed.blocks_sent == pushed.block_count
    assert block_store.verify().ok


def test_a_pointer_whose_acknowledgement_was_lost_was_moved(
    publish_next: Callable[..., Publication], bucket: Callable[..., BlockStore], store: Path
) -> None:
    """The object is there, and the second attempt is told that it exists."""
    publish_next()
    lost: list[str] = []

    def trouble(method: str, path: str) -> str | None:
        if method == "PUT" and "pointers/" in path and not lost:
            lost.append(path)
            return "unacknowledged"
        return None

    Bucket.trouble = trouble
    block_store = bucket()
    assert block_store.push(store).generation == 1
    assert len(lost) == 1
    current = block_store.current()
    assert current is not None
    assert current.generation == 1
    # The control: the same manifest, moved there by another process.
    with pytest.raises(PointerMoved):
        block_store.index.move_pointer(0, current)
