"""What the commands share that run without TensorFlow's part: help is no mistake, a mistake is one message and 2."""

import sys
from collections.abc import Callable

from absl import app, flags


class Mistake(Exception):
    """Of the one who called; the message says what to do."""


def run(main: Callable[[list[str]], int], *mistakes: type[Exception]) -> None:
    """Parses flags and exits with what `main`, called with the arguments that are no flags, returns.

    mistakes: exceptions that are told by their message alone, beside `Mistake`.
    """
    app.run(lambda argv: sys.exit(_guarded(main, argv[1:], (Mistake, *mistakes))), flags_parser=_parse_flags)


def _guarded(main: Callable[[list[str]], int], words: list[str], mistakes: tuple[type[Exception], ...]) -> int:
    try:
        return main(words)
    except mistakes as mistake:
        print(f"regraft: {mistake}", file=sys.stderr)
        return 2


def _parse_flags(argv: list[str]) -> list[str]:
    own = argv[: argv.index("--")] if "--" in argv else argv
    if any(argument in ("--help", "-help", "-h", "-?") for argument in own[1:]):
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"regraft: {error}", file=sys.stderr)
        sys.exit(2)
