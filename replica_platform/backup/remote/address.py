"""The address of a remote database: `ssh://user@host:port/path.db`."""

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from replica_platform.core.errors import TerminalError

SSH_PORT = 22


@dataclass(frozen=True)
class Address:
    """Where a remote database is.

    Attributes:
        user: The user to log in as; None for the one that SSH's configuration names.
        host: The host's name or IP address.
        port: The port of its SSH server.
        path: The path on the host; after `/~/` it is relative to the home folder.
    """

    user: str | None
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"ssh://{user}{self.host}:{self.port}{self.path}"


def parse_address(url: str) -> Address:
    """Return the address in a URL.

    Raises:
        TerminalError: It is no such address, or it has a password in it.
    """
    parts = urlsplit(url)
    if parts.password is not None:
        raise TerminalError(
            "A password in an ssh:// address would be seen by others; use a key (ssh-copy-id)."
        )
    if parts.scheme != "ssh" or not parts.hostname or len(parts.path) < 2:
        raise TerminalError(
            f"{url!r} is not an address of a remote database; "
            "write it as ssh://user@host:port/path/to/file.db."
        )
    return Address(parts.username, parts.hostname, parts.port or SSH_PORT, unquote(parts.path))
