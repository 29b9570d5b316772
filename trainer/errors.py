"""The exceptions that are meant for the person who runs something: the message says what to do."""


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
    """The error's text without what gin adds of the configurable that it was calling."""
    return str(error).partition("\n  In call to configurable")[0].strip()
