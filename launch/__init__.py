"""Command-line entry points; TensorFlow is imported here once, without its start-up chatter."""

import os
import re
import sys
import tempfile

# Information that TensorFlow's libraries print to stderr, whatever the log level, before they can
# be told not to: a person looking for an error message should not have to look past it.
_CHATTER = re.compile(r"^(I\d{4} |I0000 |WARNING: All log messages before absl::InitializeLog)")


def _import_tensorflow_quietly() -> None:
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


_import_tensorflow_quietly()
