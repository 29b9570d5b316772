"""The one exception that means: the user can fix this, and the message says how."""


class UserError(ValueError):
    """A mistake in a config, a flag, a path or the data, described for the person who made it.

    The command line prints the message alone and exits with status 2. Every other exception is a
    bug of ours: it keeps its traceback and exits with status 1.
    """

    # AutoGraph replaces an exception that is raised while it traces; it lets one with this mark pass.
    ag_pass_through = True
