"""A bucket with errors, lost answers and hanging requests, two pushes and a prune at a time.

What was pushed can be pulled whole, whatever failed on the way.
"""

import http.client
import http.server
import random
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from replica_platform.blocks import objects
from replica_platform.blocks.errors import BlockStoreUnavailable
from replica_platform.core.errors import TransientError
from replica_platform.replica import BlockStore, Master, publish
from replica_platform.replica.remote import block_store as module
from replica_platform.replica.store.manifest import now

ERRORS = 0.3
HANGS = 0.004


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on to a bucket, and lets some of them fail."""

    protocol_version = "HTTP/1.1"
    to: ClassVar[tuple[str, int]]
    rng: ClassVar[random.Random]
    counts: ClassVar[Counter[str]]
    released: ClassVar[threading.Event]

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        luck = self.rng.random()
        self.counts["requests"] += 1
        if luck < HANGS:
            self.counts["hanging"] += 1
            self.released.wait(5)
            self.close_connection = True
            return
        if luck < HANGS + ERRORS / 2:
            self.counts["errors"] += 1
            self._answer(500, [], b"")
            return
        connection = http.client.HTTPConnection(*self.to)
        connection.request(self.command, self.path, body, dict(self.headers))
        found = connection.getresponse()
        content = found.read()
        connection.close()
        if luck < HANGS + ERRORS:
            self.counts["lost answers"] += 1
            self._answer(503, [], b"")
            return
        self._answer(found.status, found.getheaders(), content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], BlockStore]]:
    """A function that makes a client of the failing bucket."""
    from moto.server import ThreadedMotoServer

    monkeypatch.setattr(objects, "REQUEST_TIMEOUT", timedelta(seconds=1))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    Proxy.to = server.get_host_and_port()
    Proxy.rng, Proxy.counts, Proxy.released = random.Random(7), Counter(), threading.Event()
    host, port = Proxy.to
    make = urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")
    urllib.request.urlopen(make).close()
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield lambda: BlockStore(
        "s3://bucket/market",
        endpoint=f"http://127.0.0.1:{proxy.server_address[1]}",
        access_key_id="key",
        secret_access_key="secret",
        region="us-east-1",
        client_options={"allow_http": True},
    )
    Proxy.released.set()
    proxy.shutdown()
    proxy.server_close()
    server.stop()


def until_done(act: Callable[[], object], counts: Counter[str]) -> object:
    """Act again while the error is one that passes, as a schedule does."""
    for _ in range(20):
        try:
            return act()
        except TransientError as error:
            counts[type(error).__name__] += 1
    raise AssertionError("it failed 20 times")


@pytest.mark.timeout(3000)
def test_two_pushes_and_a_prune_in_a_failing_bucket(
    tmp_path: Path,
    bucket: Callable[[], BlockStore],
    torture: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    master = Master(tmp_path / "master.duckdb")
    with master.write() as connection:
        connection.execute("create table t as select hash(range)::varchar s from range(100000)")
    stores = [tmp_path / "one", tmp_path / "two"]
    counts: Counter[str] = Counter()
    # Each prune is some days after the one before, so that blocks are marked and swept.
    days = iter(range(2, 1000, 2))
    monkeypatch.setattr(module, "now", lambda: now() + timedelta(days=next(days)))
    for number in range(60 if torture else 4):
        wanted = {}
        for store in stores:
            with master.write() as connection:
                connection.execute("insert into t select 'x' || range from range(?)", [number + 9])
                if number % 3 == 2:
                    connection.execute(
                        "create or replace table u as select random() from range(30000)"
                    )
            publication = publish(master.path, store, keep=2, min_age_s=0)
            wanted[store] = publication.file.read_bytes()
        acts: list[Callable[[], object]] = [
            *(lambda store=store: bucket().push(store) for store in stores),
            lambda: bucket().prune(3),
        ]
        with ThreadPoolExecutor(3) as pool:
            for one in [pool.submit(until_done, act, counts) for act in acts]:
                one.result()
        current = until_done(lambda: bucket().current(), counts)
        pulled = until_done(
            lambda: bucket().pull(tmp_path / "elsewhere", keep=1, min_age_s=0), counts
        )
        assert pulled.file.read_bytes() in wanted.values()  # type: ignore[attr-defined]
        assert current.file == pulled.manifest.file  # type: ignore[attr-defined]
        for generation in until_done(lambda: bucket().generations(), counts):  # type: ignore[attr-defined]
            verified = until_done(lambda g=generation: bucket().verify(g), counts)
            assert verified.ok, verified.sentence  # type: ignore[attr-defined]
            counts["generations verified"] += 1
    print(f"\n{dict(Proxy.counts)}, {dict(counts)}")
    assert min(Proxy.counts[kind] for kind in ("errors", "lost answers", "hanging")) > 0


def test_without_trying_again_a_push_fails(
    tmp_path: Path, bucket: Callable[[], BlockStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same bucket, and requests that are sent once."""
    monkeypatch.setattr(objects, "RETRIES", {"max_retries": 0})
    monkeypatch.setattr(objects, "CREATE_ATTEMPTS", 1)
    master = Master(tmp_path / "master.duckdb")
    with master.write() as connection:
        connection.execute("create table t as select hash(range)::varchar s from range(100000)")
    publish(master.path, tmp_path / "one")
    with pytest.raises(BlockStoreUnavailable):
        bucket().push(tmp_path / "one")
