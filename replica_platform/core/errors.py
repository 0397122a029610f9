"""The errors that people read: one sentence that says what is wrong and what to do next.

Every engine derives its own from `PlatformError`; the command line prints its text and exits
non-zero, Dagster shows it as the step's failure. What is a bug stays an ordinary exception.
"""


class PlatformError(Exception):
    """Something outside the code is wrong; the text says what, and what to do next."""


class TransientError(PlatformError):
    """The same call may go through later: nothing was lost, try again."""


class TerminalError(PlatformError):
    """The same call will fail again until somebody changes something."""
