"""A page's commands, Python and SQL, run as a reader would: in a project, from top to bottom."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from replica_platform.app.launch import PROJECT
from replica_platform_tests.docs.snippets import Command, Snippet, is_shown

LONGEST_S = 120.0
ENDED_WITHIN_S = 10.0  # after Ctrl-C
# One namespace for the Python of a page: a line of JSON in, a line of JSON out.
SESSION = """
import contextlib, io, json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    where, text = json.loads(line)
    said, wrong = io.StringIO(), ""
    with contextlib.redirect_stdout(said):
        try:
            exec(compile(text, where, "exec"), names)
        except BaseException:
            wrong = traceback.format_exc()
    print(json.dumps(wrong), flush=True)
"""


class SnippetFails(AssertionError):
    """A block of a page does not do what the page says; the text has its output."""


class Reader:
    """Someone who works through a page in a project folder.

    Args:
        project: The folder to begin in.
        environment: The variables that a shell of theirs has.
        scratch: A folder for the state of the shell between two commands.
    """

    def __init__(self, project: Path, environment: Mapping[str, str], scratch: Path) -> None:
        self._here = project
        self._environment = dict(environment)
        self._state = scratch / "state"
        self._python: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Reader":
        """Return the reader."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the Python of the page."""
        if self._python is not None:
            self._python.communicate(timeout=LONGEST_S)

    def follow(self, snippet: Snippet) -> None:
        """Do what a block says.

        Raises:
            SnippetFails: A command failed, or its output is not the one that is shown.
        """
        if "before" in snippet.marks:
            self._check(snippet, Command(snippet.marks["before"], ()))
        if snippet.title:
            file = self._here / snippet.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(snippet.text)
        elif snippet.language == "python":
            self._exec(snippet)
        elif snippet.language == "console":
            for command in snippet.commands:
                self._check(snippet, command)
        elif snippet.language == "sql":
            name = snippet.marks.get("database", "warehouse")
            dsn = self._environment["REPLICA_TARGET_DSN"].replace("/warehouse", f"/{name}")
            script = f'psql -qX -v ON_ERROR_STOP=1 "{dsn}" <<"END_OF_SQL"\n{snippet.text}END_OF_SQL'
            self._check(snippet, Command(script, ()))

    def _exec(self, snippet: Snippet) -> None:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-c", SESSION],
                cwd=self._here,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._python.stdin and self._python.stdout
        self._python.stdin.write(json.dumps([snippet.where, snippet.text]) + "\n")
        self._python.stdin.flush()
        answer = self._python.stdout.readline()
        wrong = json.loads(answer) if answer else "Python ended"
        if wrong:
            raise SnippetFails(f"{snippet.where}\n{snippet.text}\n{wrong}")

    def _check(self, snippet: Snippet, command: Command) -> None:
        seconds = re.match(r"[\d.]+", snippet.marks.get("stopped after", ""))
        code, output = self._run(command.line, float(seconds[0]) if seconds else None)
        if code != 0:
            raise SnippetFails(f"{snippet.where}\n$ {command.line}\nends with {code}:\n{output}")
        if not is_shown(command.output, output):
            shown = "\n".join(command.output)
            raise SnippetFails(
                f"{snippet.where}\n$ {command.line}\nthe page shows:\n{shown}\nseen:\n{output}"
            )

    def _run(self, line: str, stopped_after_s: float | None) -> tuple[int, str]:
        """Run a line as bash; keep its folder and its variables for the next one."""
        if re.match(r"make\b", line):
            # What it would do: each target is there, and nothing is installed.
            line = "cd " + str(PROJECT) + " && " + re.sub(r"\bmake\b", "make -n", line)
            script = f"{{ {line}\n}} >/dev/null"
        else:
            script = (
                f'[ -e "$STATE" ] && . "$STATE"\nset -a\n{line}\ncode=$?\n'
                f'{{ export -p; printf "cd %q\\n" "$PWD"; }} > "$STATE"; exit $code'
            )
        process = subprocess.Popen(
            ["bash", "-c", script],
            # A program that was started in the background ignores Ctrl-C, and so would this one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            cwd=self._here,
            env=self._environment | {"STATE": str(self._state)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=stopped_after_s or LONGEST_S)
        except subprocess.TimeoutExpired:
            if not stopped_after_s:
                return 124, _killed(process)
        else:
            if stopped_after_s:
                return process.returncode or 1, f"it ended by itself:\n{output}"
            return process.returncode, output
        # As in a terminal: to the command and all that it started. Bash then ends by the signal.
        os.killpg(process.pid, signal.SIGINT)
        try:
            return 0, process.communicate(timeout=ENDED_WITHIN_S)[0]
        except subprocess.TimeoutExpired:
            return 124, f"it goes on after Ctrl-C:\n{_killed(process)}"


def _killed(process: subprocess.Popen[str]) -> str:
    """Kill a command and all that it started; return what it printed."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]
