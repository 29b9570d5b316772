"""Command-line entry points. Importing them is cheap: TensorFlow comes when a command computes."""

import functools
import os
import re
import signal
import sys
import tempfile
import time

#: When the process began, in seconds of the monotonic clock; what comes next takes some.
STARTED_AT = time.monotonic()

#: Status of a command that resumes where it is run again: EX_TEMPFAIL of sysexits.h, a supervisor's sign to restart.
EXIT_RUN_AGAIN = 75

# Commands that resume where they were stopped; launch.local's workers do.
_RESUMING = {"launch.train", "launch.compare", "launch.local"}

# Information that TensorFlow's libraries print to stderr, whatever the log level, before they can
# be asked not to: a person looking for an error message should not have to look past it.
_CHATTER = re.compile(r"^(I\d{4} |I0000 |WARNING: All log messages before absl::InitializeLog)")


def _leave(terminal: int, number: int, frame) -> None:
    """Until the command has handlers of its own, nothing has been done that would be lost."""
    del frame
    resumes = bool(_RESUMING & set(sys.orig_argv))
    message = f"regraft: Stopped by {signal.Signals(number).name} before anything was done."
    os.write(terminal, f"{message}{' Run the same command again.' if resumes else ''}\n".encode())
    os._exit(EXIT_RUN_AGAIN if resumes else 128 + number)


def import_tensorflow() -> None:
    """Imports it without its start-up chatter."""
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            heard.seek(0)
            lines = heard.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.writelines(line for line in lines if not _CHATTER.match(line))


def catch_early_signals() -> None:
    """Ends the process with one line at SIGTERM or SIGINT, until the command has handlers of its own."""
    terminal = os.dup(2)  # which another file stands in for meanwhile
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, functools.partial(_leave, terminal))


# Python's word for it while it looks for the module to run: where a program imports us, the handlers are its own.
if sys.argv[:1] == ["-m"]:
    catch_early_signals()
