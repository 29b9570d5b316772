"""Flags that the commands share, and an exit status that a supervisor can act on.

TensorFlow is imported once the flags are right, and only by commands that compute: `run` does, `run_plain` does not.
"""

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags, logging

import launch

FLAGS = flags.FLAGS

_LAYOUT = "\n\t"  # of a message; a file's names in it have none
EXIT_DONE, EXIT_BUG, EXIT_USER_MISTAKE, EXIT_RUN_AGAIN = 0, 1, 2, launch.EXIT_RUN_AGAIN

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")

# Of a worker that is in error for another reason TensorFlow speaks of heartbeats too.
_MISSED_HEARTBEATS = re.compile(
    r"stopped sending heartbeats|heartbeat timeout|Deadline Exceeded\s+RPC: /tensorflow\.CoordinationService/Heartbeat"
)
_STOOD_STILL = (
    "TensorFlow has ended the exchange between the workers, because one of them stood still for about ten seconds (its "
    "heartbeats did not come), as a paused machine does. Run the same command again to resume from the last checkpoint."
)


class Mistake(Exception):
    """A mistake of the user's in a command without TensorFlow; the message says what to do."""


def define_config_flags() -> None:
    flags.DEFINE_multi_string("gin_file", [], "Config file; may be repeated, later ones win.")
    flags.DEFINE_multi_string("gin_param", [], "One binding, 'a.b = c'; may be repeated, wins over files.")
    flags.DEFINE_multi_string("gin_bindings", [], "The same as --gin_param, as other gin projects spell it.")
    flags.DEFINE_multi_string("gin_search_path", [], "Folder where config files and their includes are looked for.")


def define_model_dir_flag() -> None:
    flags.DEFINE_string("model_dir", None, "Folder that the run writes, and resumes from.")
    flags.DEFINE_alias("workdir", "model_dir")


def define_strategy_flags() -> None:
    flags.DEFINE_enum(
        "strategy",
        "auto",
        STRATEGIES,
        "tf.distribute strategy. auto: TPU, else cluster, else all GPUs, else one device.",
    )
    flags.DEFINE_string("tpu", None, "Name or address of a TPU.")
    flags.DEFINE_integer("virtual_devices", 0, "Splits the CPU into this many logical devices.", lower_bound=0)
    flags.DEFINE_float("start_timeout_seconds", 600.0, "How long to wait until all workers are there.", lower_bound=1)
    flags.DEFINE_float(
        "worker_timeout_seconds", 60.0, "After how much silence a worker is gone, and the others end.", lower_bound=1
    )


def load_config() -> None:
    """Parses the config that the flags name; without one that is the user's mistake."""
    from trainer.errors import UserError

    if not FLAGS.gin_file:
        raise UserError("--gin_file is missing: name a config, e.g. --gin_file=configs/runs/digits_adam_to_sgd.gin.")
    from trainer.config import REPOSITORY, parse_config, register_keras

    register_keras()
    # `import` lines of a config find modules in the working folder, beside the config, and beside us.
    folders = [os.getcwd(), *(os.path.dirname(os.path.abspath(path)) for path in FLAGS.gin_file), str(REPOSITORY)]
    sys.path += [folder for folder in folders if folder not in sys.path]
    parse_config(FLAGS.gin_file, [*FLAGS.gin_param, *FLAGS.gin_bindings], FLAGS.gin_search_path)


def strategy_from_flags():
    """The strategy, once all workers of a cluster are there and found to be alike."""
    import gin

    from trainer.cluster.fingerprint import worker_card
    from trainer.cluster.heartbeat import current_watch
    from trainer.cluster.strategy import build_strategy

    strategy = build_strategy(
        FLAGS.strategy,
        FLAGS.virtual_devices,
        FLAGS.tpu,
        gin.get_configurable("strategy.communication")(),
        FLAGS.start_timeout_seconds,
        FLAGS.worker_timeout_seconds,
        worker_card,
    )
    if current_watch() is not None:
        print(f"worker           {current_watch()}", flush=True)
    return strategy


def wants_missing_tpu() -> bool:
    """Whether a TPU is asked for by its kind alone, on a machine that has none."""
    from trainer.cluster.tpu import names_tpu

    return FLAGS.strategy == "tpu" and not names_tpu(FLAGS.tpu)


def required_model_dir() -> str:
    from trainer.errors import UserError

    if not FLAGS.model_dir:
        raise UserError("--model_dir is missing: it says which folder holds the run's files.")
    return FLAGS.model_dir


def run(main: Callable[..., int | None], takes_words: bool = False, resumes: bool = False) -> None:
    """Parses flags, runs `main` and exits: 0 done, 2 the user's mistake, 75 preempted, 1 a bug.

    main: returns its exit status, None for 0.
    takes_words: it is called with the arguments that are no flags.
    resumes: whether the same command resumes where SIGTERM or SIGINT ended it, with 75; else it exits with 128 + the
      signal's number.
    """
    compute = functools.partial(_compute, main, takes_words, resumes)
    app.run(lambda argv: sys.exit(compute(argv[1:])), flags_parser=_parse_flags)


def run_plain(main: Callable[[list[str]], int], *mistakes: type[Exception]) -> None:
    """Parses flags and exits with what `main`, called with the arguments that are no flags, returns.

    mistakes: exceptions of which only the message is printed, beside `Mistake`.
    """

    expected: tuple[type[Exception], ...] = (Mistake, *mistakes)

    def guarded(words: list[str]) -> int:
        try:
            return main(words)
        except expected as mistake:
            return _complain(str(mistake), EXIT_USER_MISTAKE)[0]

    app.run(lambda argv: sys.exit(guarded(argv[1:])), flags_parser=_parse_flags)


def _compute(main: Callable[..., int | None], takes_words: bool, resumes: bool, words: list[str]) -> int:
    """Imports TensorFlow, and returns the status of `main`."""
    if words and not takes_words:
        return _complain(f"Unexpected argument {words[0]!r}; every option is a flag, see --help.", EXIT_USER_MISTAKE)[0]
    launch.import_tensorflow()
    from trainer.run.signals import leaving_at_signals

    with leaving_at_signals(resumes):
        return _guarded(main, words if takes_words else None)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    own = argv[: argv.index("--")] if "--" in argv else argv
    if any(argument in ("--help", "-help", "-h", "-?") for argument in own[1:]):
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=EXIT_DONE)
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        sys.exit(_complain(str(error), EXIT_USER_MISTAKE)[0])
    if FLAGS["verbosity"].using_default_value:
        # TFDS talks a lot at INFO; --verbosity=0 shows it.
        FLAGS.verbosity = logging.WARNING  # type: ignore[assignment]
    return rest


def _guarded(main: Callable[..., int | None], words: Sequence[str] | None) -> int:
    from trainer.cluster.heartbeat import current_watch

    status, message = _status_of(main, words)
    watch = current_watch()
    if watch is not None:
        watch.leave(status, message)
    return status


def _status_of(main: Callable[..., int | None], words: Sequence[str] | None) -> tuple[int, str]:
    """The exit status, and what was complained of."""
    from trainer.cluster.heartbeat import current_watch
    from trainer.config import missing_binding
    from trainer.errors import RunAgain, UserError, message_of

    try:
        status = main() if words is None else main(words)
        return (EXIT_DONE if status is None else status), ""
    except UserError as error:
        return _complain(message_of(error), EXIT_USER_MISTAKE)
    except RunAgain as error:
        return _complain(message_of(error), RunAgain.exit_status)
    except Exception as error:  # noqa: BLE001  the outermost frame: printed with its traceback, and turned into a status
        watch = current_watch()
        if watch is not None and _is_of_lost_worker(error):
            watch.wait_for_peer_failure()
            # All are there. TensorFlow looks for itself, and gives up sooner than the watch may be asked to.
            if _MISSED_HEARTBEATS.search(str(error)):
                watch.give_up(_STOOD_STILL)
        missing = missing_binding(error)
        if missing:
            return _complain(missing, EXIT_USER_MISTAKE)
        traceback.print_exc()
        return _complain(
            f"Stopped by an unexpected {type(error).__name__}; the traceback above says where. If that is not in "
            "a module of your own, it is a bug in regraft.",
            EXIT_BUG,
        )


def _is_of_lost_worker(error: Exception) -> bool:
    """Whether it is what TensorFlow raises where the other end of an exchange is gone."""
    import tensorflow as tf

    names = "Unavailable", "Aborted", "Cancelled", "DeadlineExceeded", "Internal", "FailedPrecondition"
    return isinstance(error, tuple(getattr(tf.errors, f"{name}Error") for name in names))


def _complain(message: str, status: int) -> tuple[int, str]:
    # As trainer.output.printable does it, which would bring TensorFlow along.
    shown = "".join(
        letter if letter.isprintable() or letter in _LAYOUT else letter.encode("unicode_escape").decode()
        for letter in message
    )
    print(f"regraft: {shown}", file=sys.stderr, flush=True)
    return status, message
