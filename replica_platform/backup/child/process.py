"""Work on a SQLite file in a process of its own, and the answer brought back.

A process that opens and closes a live SQLite file, or its `-shm`, drops every lock that the
same process holds on it; commits can then vanish while `integrity_check` says ok. So whatever
reads, copies or hashes a file runs as `python -m replica_platform.backup.child`. That, and not
multiprocessing's spawn, because spawn imports the caller's main module again (Dagster's, or a
script without a guard); both cost one interpreter start, 0.1 s.

Only the parent's side belongs here; what the child does is in `work`.
"""

import json
import os
import subprocess
import sys
from typing import Any

from replica_platform.backup.errors import BY_NAME, ChildFailed
from replica_platform.core.reports import Progress


def in_child(task: str, progress: Progress | None = None, **arguments: Any) -> dict[str, Any]:
    """Run one of `work`'s tasks in a child and return its answer; its errors are raised here.

    The child ends by itself when this process dies: its standard input is then at its end.
    """
    module = "replica_platform.backup.child"
    command = [sys.executable, "-P", "-m", module, task, json.dumps(arguments)]
    # The child finds the same modules as we do, wherever we were started.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    answer: dict[str, Any] = {}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    ) as child:
        assert child.stdout and child.stderr and child.stdin
        try:
            for line in child.stdout:
                answer = json.loads(line)
                if progress and "progress" in answer:
                    progress(*answer["progress"])
            noise = child.stderr.read()
        except BaseException:
            child.kill()
            raise
    if "error" in answer:
        raise BY_NAME[answer["error"]](answer["text"])
    if "result" not in answer:
        reason = noise.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise ChildFailed(
            f"The process that should {task} the file ended without an answer ({reason[0]}); "
            "nothing was kept of it. Try again."
        )
    result: dict[str, Any] = answer["result"]
    return result
