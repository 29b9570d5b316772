"""The exceptions that are meant for the person who runs something: the message says what to do."""

import re

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# What Keras writes around an error of a layer's call, and around that of a model whose outputs it infers.
_WRAPPED_BY_KERAS = re.compile(
    r"Exception encountered when calling .*?\n\n(?P<cause>.*?)\n\nArguments received by .*"
    r"|Could not automatically infer .*? Error encountered:\n\n(?P<inferred>.*)",
    re.DOTALL,
)


class UserError(ValueError):
    """A mistake in a config, a flag, a path or the data, described for the person who made it.

    The command line prints the message alone and exits with status 2. Every other exception but
    `RunAgain` is a bug of ours: it keeps its traceback and exits with status 1.
    """

    # AutoGraph replaces an exception that is raised while it traces; it lets one with this mark pass.
    ag_pass_through = True


class RunAgain(RuntimeError):
    """An error that the same command may get past the next time: a worker that did not come, or is gone."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: "try again", a supervisor's sign to restart


def message_of(error: BaseException) -> str:
    """The error's text, without what gin and Keras add of the calls that it came through."""
    text = _COLOURS.sub("", str(error).partition("\n  In call to configurable")[0])
    while (wrapped := _WRAPPED_BY_KERAS.fullmatch(text.strip())) is not None:
        text = wrapped["cause"] or wrapped["inferred"]
    return text.strip()
