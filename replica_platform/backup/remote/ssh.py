"""The connection of a pull: python3 over there, our program in it, a request and its answer.

Nothing is installed on the other side and nothing is written there by this module; what the
program over there does is in `far`. A host whose key is not known is refused.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from replica_platform.backup.child.contents import packed, unpacked
from replica_platform.backup.errors import HostUnknown, NotAllowed, Unreachable, Unreadable
from replica_platform.core.errors import TerminalError

if TYPE_CHECKING:
    import asyncssh

CONNECT_TIMEOUT_S = 20
# A host that fell silent is given up after four unanswered questions.
KEEPALIVE_S = 15
BLOCK_BYTES = 1 << 18
READY = b"replica-ready\n"
# Says that it is there, reads as many bytes of program as the first line says, and runs them;
# no file is needed.
STARTER = (
    f'import sys;print("{READY.decode().strip()}",flush=True);'
    "b=sys.stdin.buffer;exec(b.read(int(b.readline())))"
)


@dataclass(frozen=True)
class Address:
    """Where a database is: `ssh://user@host:port/path.db`."""

    user: str | None
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"ssh://{user}{self.host}:{self.port}{self.path}"


def parse(url: str) -> Address:
    """The address in a URL; a password in it is refused, and `/~/x.db` is in the home folder."""
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
    return Address(parts.username, parts.hostname, parts.port or 22, unquote(parts.path))


class FarSide:
    """The program over there, asked one request at a time."""

    def __init__(
        self, runner: asyncio.Runner, process: "asyncssh.SSHClientProcess[bytes]", where: Address
    ) -> None:
        self._runner, self._process, self._where = runner, process, where
        self.bytes_received = 0

    def start(self, program: bytes) -> None:
        """Wait until python3 is there, past whatever a login prints, and give it its program."""
        while (line := self._runner.run(self._process.stdout.readline())) != READY:
            if not line:
                raise self._ended()
        self._process.stdin.write(program)
        self.answer()

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send a request and wait for its answer, however long that takes over there."""
        self._process.stdin.write(packed({"do": do, **arguments}).encode("ascii") + b"\n")
        return self.answer()

    def answer(self) -> Any:
        """The next answer; an error over there is raised here."""
        line = self._runner.run(self._process.stdout.readline())
        self.bytes_received += len(line)
        if not line.endswith(b"\n"):
            raise self._ended()
        answer = unpacked(line.decode("ascii"))
        if "error" in answer:
            raise Unreadable(f"{self._where} cannot be read: {answer['error']}. Check it there.")
        return answer["result"]

    def receive(self, size: int, write: Callable[[bytes], object]) -> None:
        """The `size` bytes that follow the last answer."""
        left = size
        while left:
            block = self._runner.run(self._process.stdout.read(min(left, BLOCK_BYTES)))
            if not block:
                raise self._ended()
            write(block)
            left -= len(block)
        self.bytes_received += size

    def _ended(self) -> Exception:
        noise = self._runner.run(self._process.stderr.read()).decode(errors="replace").strip()
        self._runner.run(self._process.wait())
        if self._process.returncode == 127:
            return TerminalError(
                f"There is no python3 on {self._where.host}, which is all that a pull needs "
                "over there; install it."
            )
        reason = noise.splitlines()[-1] if noise else "no reason was given"
        return Unreachable(
            f"The connection to {self._where} ended half-way ({reason}); "
            "nothing here was changed. Try again."
        )


@contextmanager
def far_side(
    where: Address, known_hosts: Path | None, client_keys: Sequence[Path] | None
) -> Iterator[FarSide]:
    """Connect, start our program over there on the file, and end both at the end.

    `known_hosts` and `client_keys` are those of ~/.ssh (and its agent) when left out.
    """
    try:
        import asyncssh
    except ImportError as error:
        raise TerminalError(
            "Pulling over SSH needs asyncssh; install it with "
            "`pip install 'replica-platform[remote]'`."
        ) from error
    with asyncio.Runner() as runner:
        try:
            connection = runner.run(_connect(where, known_hosts, client_keys))
        except asyncssh.HostKeyNotVerifiable as error:
            raise HostUnknown(
                f"The key of {where.host}:{where.port} is not in the known hosts, or is another "
                f"one now ({error.reason}); nothing was sent. Compare its fingerprint, then add "
                f"it: ssh-keyscan -p {where.port} {where.host} >> ~/.ssh/known_hosts."
            ) from error
        except asyncssh.PermissionDenied as error:
            raise NotAllowed(
                f"{where.host} does not let {where.user or 'this user'} in ({error.reason}); "
                "give it your public key: ssh-copy-id."
            ) from error
        except (OSError, TimeoutError, asyncssh.Error) as error:
            raise Unreachable(
                f"Cannot reach {where.host}:{where.port} ({error}); "
                "check that it is on and that its SSH server runs."
            ) from error
        try:
            process = runner.run(_start(connection))
            far = FarSide(runner, process, where)
            path = where.path.removeprefix("/~/")
            far.start(_program(path))
            yield far
        except (asyncssh.Error, ConnectionError) as error:
            raise Unreachable(
                f"The connection to {where} was lost ({error}); nothing here was changed. "
                "Try again."
            ) from error
        finally:
            connection.close()
            runner.run(connection.wait_closed())


async def _connect(
    where: Address, known_hosts: Path | None, client_keys: Sequence[Path] | None
) -> "asyncssh.SSHClientConnection":
    import asyncssh

    # Left out, not None: to asyncssh None means "trust any host".
    given: dict[str, Any] = {}
    if known_hosts is not None:
        given["known_hosts"] = str(known_hosts)
    if client_keys is not None:
        given["client_keys"] = [str(key) for key in client_keys]
    if where.user:
        given["username"] = where.user
    return await asyncssh.connect(
        where.host,
        where.port,
        connect_timeout=CONNECT_TIMEOUT_S,
        login_timeout=CONNECT_TIMEOUT_S,
        keepalive_interval=KEEPALIVE_S,
        keepalive_count_max=4,
        **given,
    )


async def _start(
    connection: "asyncssh.SSHClientConnection",
) -> "asyncssh.SSHClientProcess[bytes]":
    return await connection.create_process(f"python3 -c '{STARTER}'", encoding=None)


def _program(path: str) -> bytes:
    """`look` and `far` as one program that serves `path`, its length before it."""
    backup = Path(__file__).parent.parent
    parts = [(backup / name).read_text() for name in ("child/contents.py", "remote/agent.py")]
    runs = [f"exec(compile({json.dumps(part)}, 'replica', 'exec'))" for part in parts]
    program = "\n".join([*runs, f"serve({json.dumps(path)})"]).encode()
    return b"%d\n%s" % (len(program), program)
