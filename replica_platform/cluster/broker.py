"""The broker of a cluster: whether it answers, and whether it keeps what it was given.

A broker that forgets loses runs that no worker has taken yet; they are found by their time limit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from replica_platform.core.errors import TerminalError
from replica_platform.core.postgres import mask_dsn

if TYPE_CHECKING:
    from redis import Redis

ANSWERS_WITHIN_S = 2.0


class NoBroker(TerminalError):
    """The broker is not named, not installed or does not answer."""


class ForgetfulBroker(TerminalError):
    """The broker keeps nothing when it ends, so that runs which it was given would be lost."""


@lru_cache(maxsize=4)
def _client(url: str) -> "Redis":
    try:
        import redis
    except ImportError:
        raise NoBroker(
            "The packages of a cluster are not installed; run `pip install "
            "'replica-platform[cluster]'`."
        ) from None
    try:
        return redis.Redis.from_url(
            url,
            socket_connect_timeout=ANSWERS_WITHIN_S,
            socket_timeout=ANSWERS_WITHIN_S,
            health_check_interval=0,
        )
    except ValueError:
        raise NoBroker(
            f"REPLICA_BROKER_URL is {mask_dsn(url)!r}, which is not the address of a Redis; write "
            "it as redis://:password@host:6379/0."
        ) from None


def answers(url: str) -> bool:
    """Return whether the broker answers.

    Raises:
        NoBroker: `url` is not the address of a Redis, or its package is not installed.
    """
    try:
        with _talking(url) as client:
            return bool(client.ping())
    except NoAnswer:
        return False


def assert_kept(url: str) -> None:
    """Refuse a broker that does not answer, or keeps nothing on disk.

    Raises:
        NoBroker: It does not answer, or `url` is not the address of a Redis.
        ForgetfulBroker: Its setting `appendonly` is `no`.
    """
    with _talking(url) as client:
        kept = client.info("persistence")
    if not kept.get("aof_enabled"):
        raise ForgetfulBroker(
            f"The broker at {mask_dsn(url)} forgets its queue when it ends: `appendonly` is no. "
            "Set `appendonly yes` in redis.conf, or now with `redis-cli config set appendonly yes`."
        )


class NoAnswer(NoBroker):
    """The broker does not answer."""


@contextmanager
def _talking(url: str) -> Iterator["Redis"]:
    if not url:
        raise NoBroker(
            "REPLICA_BROKER_URL is not set; set it to the address of a Redis such as "
            "redis://:password@broker.example.com:6379/0, here or in the file .env."
        )
    client = _client(url)
    import redis

    try:
        yield client
    except redis.exceptions.AuthenticationError:
        raise NoBroker(
            f"The broker at {mask_dsn(url)} refuses the password; correct REPLICA_BROKER_URL."
        ) from None
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise NoAnswer(
            f"The broker at {mask_dsn(url)} does not answer: {reason}. See whether it runs."
        ) from None
