"""Run a function in a forked process that kills itself (-9) just before its n-th step.

A step is visible on the disk or to another process: a file written, synced, renamed, linked,
deleted, its mode changed, a child started, an object of a block store made, renamed or removed.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from replica_platform.blocks.objects import Objects

STEPS = [
    (os, "fsync"),
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "chmod"),
    (Path, "write_text"),
    (Path, "write_bytes"),
    (subprocess, "Popen"),
    (os, "link"),
    (Objects, "create"),
    (Objects, "rename"),
    (Objects, "remove"),
]


def killed_before_step(number: int, work: Callable[[], object]) -> bool:
    """Run `work` in a fork, killed before its step `number`; return False if it ended before."""
    pid = os.fork()
    if pid == 0:
        _kill_before_step(number)
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(2)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the work itself failed"
    return False


def program_killed_before_step(number: int, work: Callable[..., object], *arguments: Any) -> bool:
    """Do the same in a new Python, for work with threads that do not live on in a fork.

    Args:
        number: The step.
        work: A function of a module.
        *arguments: Its arguments, which JSON can hold.
    """
    name = [work.__module__, work.__name__]
    command = [sys.executable, "-m", __name__, json.dumps([number, *name, *arguments])]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60).returncode
    assert ended in (0, -signal.SIGKILL), "the work itself failed"
    return ended != 0


def _kill_before_step(number: int) -> None:
    left = number

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return step

    for owner, name in STEPS:
        setattr(owner, name, counted(getattr(owner, name)))


if __name__ == "__main__":
    at_step, module, function, *given = json.loads(sys.argv[1])
    chosen = getattr(import_module(module), function)
    _kill_before_step(at_step)
    chosen(*given)
