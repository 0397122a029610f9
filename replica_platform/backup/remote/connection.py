"""The SSH connection of a pull: start the agent in a remote python3, send requests, read answers.

Nothing is installed on the other host, and this module writes nothing there; `agent` says what
the program does. A host whose key is not known is refused.
"""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from replica_platform.backup.child.contents import pack, unpack
from replica_platform.backup.errors import Unreachable, Unreadable
from replica_platform.backup.remote.address import Address
from replica_platform.backup.remote.errors import translate_errors
from replica_platform.core.errors import TerminalError

if TYPE_CHECKING:
    import asyncssh

Received = TypeVar("Received")

CONNECT_TIMEOUT_S = 20
# A host that fell silent is given up after four unanswered messages.
KEEPALIVE_S = 15
KEEPALIVE_COUNT = 4
# The agent sends a heartbeat every 10 s, however long its work takes.
SILENCE_S = 60.0
# The longest work of one request: a snapshot of a large file from a slow card takes hours.
ANSWER_S = 6 * 3600.0
CLOSE_S = 5.0
BLOCK_BYTES = 1 << 18
COMMAND_NOT_FOUND = 127
READY = b"replica-ready\n"
# Reports that python3 runs, reads as many bytes of program as the first line says, runs them.
STARTER = (
    f'import sys;print("{READY.decode().strip()}",flush=True);'
    "b=sys.stdin.buffer;exec(b.read(int(b.readline())))"
)
PROGRAM = ("child/contents.py", "child/file_copy.py", "remote/agent.py")


class RemoteAgent:
    """The agent on the other host, asked one request at a time; no wait is without a deadline."""

    def __init__(
        self, runner: asyncio.Runner, process: "asyncssh.SSHClientProcess[bytes]", address: Address
    ) -> None:
        self._runner, self._process, self._address = runner, process, address
        self.bytes_received = 0

    def count_received(self, size: int) -> None:
        """Add bytes that another program received."""
        self.bytes_received += size

    def start(self, program: bytes) -> None:
        """Wait until python3 runs, past what the login prints, and send it its program."""
        deadline = time.monotonic() + ANSWER_S
        while self._line(deadline) != READY:
            pass
        self._process.stdin.write(program)
        self._answer(deadline)

    def ask(self, request: str, **arguments: Any) -> Any:
        """Send a request and return its answer.

        Raises:
            Unreadable: The agent could not do what was asked.
            Unreachable: The connection ended, or the agent was silent for too long.
        """
        self._send(request, arguments)
        return self._answer(time.monotonic() + ANSWER_S)

    def receive(
        self, request: str, size: int, write: Callable[[bytes], object], **arguments: Any
    ) -> None:
        """Send a request whose answer follows `size` bytes, and pass each frame to `write`.

        Raises:
            Unreachable: The connection ended, or the agent was silent for too long.
        """
        self._send(request, arguments)
        deadline = time.monotonic() + ANSWER_S
        left = size
        while left > 0:
            block = self._frame(deadline)
            write(block)
            left -= len(block)
        self._answer(deadline)

    def _send(self, request: str, arguments: dict[str, Any]) -> None:
        message = pack({"request": request, **arguments})
        self._process.stdin.write(message.encode("ascii") + b"\n")

    def _answer(self, deadline: float) -> Any:
        answer = unpack(self._frame(deadline).decode("ascii"))
        if "error" in answer:
            raise Unreadable(f"{self._address} cannot be read: {answer['error']}. Check it there.")
        return answer["result"]

    def _frame(self, deadline: float) -> bytes:
        """Return the next frame that is no heartbeat; see `agent` for the format."""
        while not (size := self._frame_size(deadline)):
            pass
        blocks: list[bytes] = []
        while size:
            block = self._wait(self._process.stdout.read(min(size, BLOCK_BYTES)), deadline)
            if not block:
                raise self._ended()
            blocks.append(block)
            size -= len(block)
            self.bytes_received += len(block)
        return b"".join(blocks)

    def _frame_size(self, deadline: float) -> int:
        header = self._line(deadline).strip()
        if not header.isdigit():
            raise Unreachable(
                f"{self._address.host} sent what is no answer ({header[:40]!r}), so the pull was "
                "given up; nothing here was changed. Check what its login prints, then try again."
            )
        return int(header)

    def _line(self, deadline: float) -> bytes:
        line = self._wait(self._process.stdout.readline(), deadline)
        self.bytes_received += len(line)
        if not line.endswith(b"\n"):
            raise self._ended()
        return line

    def _wait(self, reading: Coroutine[Any, Any, Received], deadline: float) -> Received:
        """Wait for the next bytes, at most `SILENCE_S` and not beyond the deadline."""
        left = min(SILENCE_S, deadline - time.monotonic())
        try:
            return self._runner.run(asyncio.wait_for(reading, left))
        except TimeoutError as error:
            silent = f"sent nothing for {SILENCE_S:g} s" if left == SILENCE_S else "did not finish"
            raise Unreachable(
                f"{self._address.host} {silent}, so the pull was given up; "
                "nothing here was changed. Check that host, then try again."
            ) from error

    def _ended(self) -> Exception:
        complaints = ""
        with suppress(TimeoutError):
            complaints = self._runner.run(asyncio.wait_for(self._complaints(), CLOSE_S))
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

    async def _complaints(self) -> str:
        complaints = await self._process.stderr.read()
        await self._process.wait()
        return complaints.decode(errors="replace").strip()


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
        Unreachable: The host cannot be reached, ended the connection, or fell silent.
        TerminalError: asyncssh is missing here, or python3 there.
    """
    with asyncio.Runner() as runner:
        with translate_errors(address, connecting=True):
            connection = runner.run(_connect(address, known_hosts, client_keys))
        try:
            with translate_errors(address):
                process = runner.run(asyncio.wait_for(_start(connection), CONNECT_TIMEOUT_S))
                agent = RemoteAgent(runner, process, address)
                agent.start(_program(address.path.removeprefix("/~/")))
                yield agent
        finally:
            runner.run(_close(connection))


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


async def _close(connection: "asyncssh.SSHClientConnection") -> None:
    connection.close()
    try:
        await asyncio.wait_for(connection.wait_closed(), CLOSE_S)
    except TimeoutError:
        connection.abort()


def _program(path: str) -> bytes:
    """Return the agent with what it needs as one program that serves `path`, after its length."""
    engine = Path(__file__).parent.parent
    parts = [(engine / name).read_text() for name in PROGRAM]
    runs = [f"exec(compile({json.dumps(part)}, 'replica', 'exec'))" for part in parts]
    program = "\n".join([*runs, f"serve({json.dumps(path)})"]).encode()
    return b"%d\n%s" % (len(program), program)
