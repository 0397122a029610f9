"""The SSH connection of a pull: start the agent in a remote python3, send requests, read answers.

Nothing is installed on the other host, and this module writes nothing there; `agent` says what
the program does. A host whose key is not known is refused.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replica_platform.backup.child.contents import pack, unpack
from replica_platform.backup.errors import Unreachable, Unreadable
from replica_platform.backup.remote.address import Address
from replica_platform.backup.remote.errors import translate_errors
from replica_platform.core.errors import TerminalError

if TYPE_CHECKING:
    import asyncssh

CONNECT_TIMEOUT_S = 20
# A host that fell silent is given up after four unanswered messages.
KEEPALIVE_S = 15
KEEPALIVE_COUNT = 4
BLOCK_BYTES = 1 << 18
COMMAND_NOT_FOUND = 127
READY = b"replica-ready\n"
# Reports that python3 runs, reads as many bytes of program as the first line says, runs them.
STARTER = (
    f'import sys;print("{READY.decode().strip()}",flush=True);'
    "b=sys.stdin.buffer;exec(b.read(int(b.readline())))"
)
PROGRAM = ("child/contents.py", "remote/agent.py")


class RemoteAgent:
    """The agent on the other host, asked one request at a time."""

    def __init__(
        self, runner: asyncio.Runner, process: "asyncssh.SSHClientProcess[bytes]", address: Address
    ) -> None:
        self._runner, self._process, self._address = runner, process, address
        self.bytes_received = 0

    def start(self, program: bytes) -> None:
        """Wait until python3 runs, past what the login prints, and send it its program."""
        while (line := self._runner.run(self._process.stdout.readline())) != READY:
            if not line:
                raise self._ended()
        self._process.stdin.write(program)
        self._answer()

    def ask(self, request: str, **arguments: Any) -> Any:
        """Send a request and return its answer.

        Raises:
            Unreadable: The agent could not do what was asked.
            Unreachable: The connection ended.
        """
        message = pack({"request": request, **arguments})
        self._process.stdin.write(message.encode("ascii") + b"\n")
        return self._answer()

    def receive(self, size: int, write: Callable[[bytes], object]) -> None:
        """Read the `size` bytes that follow the last answer."""
        left = size
        while left:
            block = self._runner.run(self._process.stdout.read(min(left, BLOCK_BYTES)))
            if not block:
                raise self._ended()
            write(block)
            left -= len(block)
        self.bytes_received += size

    def _answer(self) -> Any:
        line = self._runner.run(self._process.stdout.readline())
        self.bytes_received += len(line)
        if not line.endswith(b"\n"):
            raise self._ended()
        answer = unpack(line.decode("ascii"))
        if "error" in answer:
            raise Unreadable(f"{self._address} cannot be read: {answer['error']}. Check it there.")
        return answer["result"]

    def _ended(self) -> Exception:
        complaints = self._runner.run(self._process.stderr.read()).decode(errors="replace").strip()
        self._runner.run(self._process.wait())
        if self._process.returncode == COMMAND_NOT_FOUND:
            return TerminalError(
                f"There is no python3 on {self._address.host}, which is all that a pull needs "
                "there; install it."
            )
        reason = complaints.splitlines()[-1] if complaints else "no reason was given"
        return Unreachable(
            f"The connection to {self._address} ended half-way ({reason}); "
            "nothing here was changed. Try again."
        )


@contextmanager
def connect(
    address: Address, known_hosts: Path | None, client_keys: Sequence[Path] | None
) -> Iterator[RemoteAgent]:
    """Connect, start the agent for the file, and end both after the block.

    Args:
        address: The database on the other host.
        known_hosts: The file of trusted host keys; ~/.ssh/known_hosts if None.
        client_keys: Private keys; those of ~/.ssh and its agent if None.

    Raises:
        HostUnknown: The host's key is not known.
        NotAllowed: The host refuses the login.
        Unreachable: The host cannot be reached, or the connection ended.
        TerminalError: asyncssh is missing here, or python3 there.
    """
    with asyncio.Runner() as runner:
        with translate_errors(address, connecting=True):
            connection = runner.run(_connect(address, known_hosts, client_keys))
        try:
            with translate_errors(address):
                process = runner.run(_start(connection))
                agent = RemoteAgent(runner, process, address)
                agent.start(_program(address.path.removeprefix("/~/")))
                yield agent
        finally:
            connection.close()
            runner.run(connection.wait_closed())


async def _connect(
    address: Address, known_hosts: Path | None, client_keys: Sequence[Path] | None
) -> "asyncssh.SSHClientConnection":
    import asyncssh

    # Left out, not None: to asyncssh None means "trust any host".
    given: dict[str, Any] = {}
    if known_hosts is not None:
        given["known_hosts"] = str(known_hosts)
    if client_keys is not None:
        given["client_keys"] = [str(key) for key in client_keys]
    if address.user:
        given["username"] = address.user
    return await asyncssh.connect(
        address.host,
        address.port,
        connect_timeout=CONNECT_TIMEOUT_S,
        login_timeout=CONNECT_TIMEOUT_S,
        keepalive_interval=KEEPALIVE_S,
        keepalive_count_max=KEEPALIVE_COUNT,
        **given,
    )


async def _start(
    connection: "asyncssh.SSHClientConnection",
) -> "asyncssh.SSHClientProcess[bytes]":
    return await connection.create_process(f"python3 -c '{STARTER}'", encoding=None)


def _program(path: str) -> bytes:
    """Return the agent with what it needs as one program that serves `path`, after its length."""
    engine = Path(__file__).parent.parent
    parts = [(engine / name).read_text() for name in PROGRAM]
    runs = [f"exec(compile({json.dumps(part)}, 'replica', 'exec'))" for part in parts]
    program = "\n".join([*runs, f"serve({json.dumps(path)})"]).encode()
    return b"%d\n%s" % (len(program), program)
