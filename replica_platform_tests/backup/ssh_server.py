"""An SSH server on a free port, asyncssh's own, that runs commands as sshd does.

It has a host key and accepts one client key; both are made new each time.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncssh


@dataclass(frozen=True)
class Host:
    """The server's port, its key and the key that it accepts."""

    port: int
    known_hosts: Path
    client_key: Path

    def url(self, file: Path) -> str:
        """Return the address of a file on the server."""
        return f"ssh://pi@127.0.0.1:{self.port}{file}"

    @property
    def access(self) -> dict:
        """The arguments of `pull` for this server."""
        return {"known_hosts": self.known_hosts, "client_keys": [self.client_key]}


async def copy_stream(source, sink) -> None:
    """Copy bytes from one stream to the other until either is closed."""
    with suppress(OSError, asyncssh.Error):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    with suppress(OSError):
        sink.write_eof()


@contextmanager
def serving(folder: Path, path: str | None = None) -> Iterator[Host]:
    """Run the server in a thread until the block ends; `path` is its commands' PATH."""
    host_key, client_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    (folder / "client").write_bytes(client_key.export_private_key())
    (folder / "client").chmod(0o600)
    (folder / "authorized").write_bytes(client_key.export_public_key())
    # This Python first: a version manager's shim takes longer to start than a pull.
    ours = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": ours if path is None else path}

    async def run(process: asyncssh.SSHServerProcess) -> None:
        running.append(asyncio.current_task())
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", process.command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment
        )
        # Not asyncssh's redirect: it reads a pipe twice at once when a client is slow.
        feeding = asyncio.create_task(copy_stream(process.stdin, child.stdin))
        complaining = asyncio.create_task(copy_stream(child.stderr, process.stderr))
        try:
            await copy_stream(child.stdout, process.stdout)
            await asyncio.wait({complaining}, timeout=1)
        finally:
            feeding.cancel()
            complaining.cancel()
            ending = loop.create_task(end(child))  # a separate task: a lost client cancels this one
            endings.append(ending)
        process.exit(await asyncio.shield(ending))

    async def end(child: asyncio.subprocess.Process) -> int:
        for descriptor in range(3):  # as sshd does: a program that still writes gets EPIPE
            child._transport.get_pipe_transport(descriptor).close()
        try:
            return await asyncio.wait_for(child.wait(), 5)
        except TimeoutError:
            child.kill()
            return await child.wait()
        finally:
            child._transport.close()

    async def stop() -> None:
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.05)
        for task in running:  # one whose command is silent does not notice a lost client
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.gather(*endings)

    running: list[asyncio.Task[None]] = []
    endings: list[asyncio.Task[int]] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def do(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(20)

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[host_key],
            authorized_client_keys=str(folder / "authorized"),
            process_factory=run,
            encoding=None,
        )

    server = do(listen())
    try:
        port = server.sockets[0].getsockname()[1]
        public = host_key.export_public_key().decode()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
        yield Host(port, folder / "known_hosts", folder / "client")
    finally:
        do(stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
