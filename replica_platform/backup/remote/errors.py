"""The place where errors of SSH become the engine's own.

Apart from `backup/errors.py`, because asyncssh takes long to import and is an extra that may be
missing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from replica_platform.backup.errors import HostUnknown, NotAllowed, Unreachable
from replica_platform.backup.remote.address import Address
from replica_platform.core.errors import PlatformError, TerminalError


@contextmanager
def translate_errors(address: Address, *, connecting: bool = False) -> Iterator[None]:
    """Raise errors of SSH as this engine's own.

    Args:
        address: The database that is pulled.
        connecting: Whether the connection is being made; otherwise it was lost.

    Raises:
        HostUnknown: The host's key is not known, or is another one now.
        NotAllowed: The host refuses the login, or a key file cannot be used.
        Unreachable: The host cannot be reached, or the connection ended.
        TerminalError: asyncssh is not installed.
    """
    asyncssh = _import_asyncssh()
    # asyncssh reads the keys while it connects; its errors of a key are ValueErrors.
    expected = (OSError, ValueError) if connecting else (ConnectionError, TimeoutError)
    try:
        yield
    except (*expected, asyncssh.Error) as error:
        raise (_of_connecting if connecting else _of_a_connection)(error, address) from error


def _import_asyncssh() -> ModuleType:
    try:
        import asyncssh
    except ImportError as error:
        raise TerminalError(
            "Pulling over SSH needs asyncssh; install it with "
            "`pip install 'replica-platform[remote]'`."
        ) from error
    return asyncssh


def _of_connecting(error: Exception, address: Address) -> PlatformError:
    asyncssh = _import_asyncssh()
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return HostUnknown(
            f"The key of {address.host}:{address.port} is not in the known hosts, or is another "
            f"one now ({error.reason}); nothing was sent. Compare its fingerprint, then add "
            f"it: ssh-keyscan -p {address.port} {address.host} >> ~/.ssh/known_hosts."
        )
    if isinstance(error, asyncssh.PermissionDenied):
        return NotAllowed(
            f"{address.host} does not let {address.user or 'this user'} in ({error.reason}); "
            "give it your public key: ssh-copy-id."
        )
    if isinstance(error, ValueError) or getattr(error, "filename", None):
        return NotAllowed(
            f"A private key or the known hosts for {address.host} cannot be used ({error}); name "
            "files that exist, and a key without a passphrase or one that an SSH agent holds."
        )
    return Unreachable(
        f"Cannot reach {address.host}:{address.port} ({error}); "
        "check that it is on and that its SSH server runs."
    )


def _of_a_connection(error: Exception, address: Address) -> PlatformError:
    return Unreachable(
        f"The connection to {address} was lost ({error}); nothing here was changed. Try again."
    )
