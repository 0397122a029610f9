"""A bucket for lakes: moto's S3 server behind a proxy that can refuse or hold back."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from replica_platform_tests.faults.outbox_proxy import Proxy

SECRET = "s3cr'et/of+the=bucket"


@contextmanager
def lake_bucket() -> Iterator[tuple[Proxy, dict[str, str]]]:
    """Yield the proxy of a bucket `lakes`, and the environment that leads to it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        make = urllib.request.Request(f"http://{host}:{port}/lakes", method="PUT")
        urllib.request.urlopen(make).close()
        with Proxy((host, port)) as proxy:
            yield (
                proxy,
                {
                    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
                    "AWS_ACCESS_KEY_ID": "key",
                    "AWS_SECRET_ACCESS_KEY": SECRET,
                    "AWS_DEFAULT_REGION": "us-east-1",
                },
            )
    finally:
        server.stop()
